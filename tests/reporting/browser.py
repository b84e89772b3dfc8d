"""Pages in a real browser."""

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
# A copy of the page measures itself; the real one forbids scripts.
MEASURE = """<script>
addEventListener("load", () => {
  const narrow = getComputedStyle(document.querySelector(".plot.narrow")).display
  const texts = document.querySelectorAll("svg text").length
  console.log(`measured ${innerWidth} ${document.documentElement.scrollWidth} ${narrow} ${texts}`)
})
</script>"""


def browse(page: Path, profile: Path, width: int, *flags: str) -> tuple[np.ndarray, str]:
    """A screenshot [height, width, rgb], 0 to 1, and what the page wrote to the console."""
    image = page.with_suffix(".shot.png")
    profile.mkdir()
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},1600", *flags]
    done = subprocess.run(
        [*command, f"--screenshot={image}", page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert image.is_file(), done.stderr
    console = "\n".join(re.findall(r"CONSOLE[^\"]*\"(.*?)\", source", done.stderr, re.DOTALL))
    return matplotlib.image.imread(image)[..., :3], console
