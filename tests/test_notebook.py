"""docs/notebook.ipynb runs from its first cell to its last, and shows what its text says."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"

# A process of its own, for nbclient leaves sockets open; it ends without waiting for what they have not sent. Kernel
# and client make theirs in the working folder: no ports, which other tests may take.
EXECUTE = """
import os
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")
NotebookClient(notebook, km=kernel, timeout=600, startup_timeout=300).execute()
nbformat.write(notebook, "done.ipynb")
os._exit(0)
"""


def printed(notebook: nbformat.NotebookNode, beginning: str) -> str:
    """The rest of the line that begins so, of all that the cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    lines = [line for output in outputs for line in output.get("text", "").splitlines()]
    (line,) = [line for line in lines if line.startswith(beginning)]
    return line.removeprefix(beginning)


def rises(notebook: nbformat.NotebookNode) -> bool:
    """Whether the last trial earns half as much again as the first; another processor gives other numbers."""
    first, *_, last = ast.literal_eval(printed(notebook, "mean return of each trial:").strip())
    return last > 1.5 * first


def test_it_runs_and_its_agent_learns_in_context(tmp_path):
    folders = {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, NOTEBOOK], cwd=tmp_path, env=os.environ | folders | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rises(nbformat.read(tmp_path / "done.ipynb", as_version=4))


def test_what_is_shown_in_it_was_made_by_its_cells():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)) and rises(notebook)
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) == 4
