"""The steps that `benchmarks._faults_kills` kills, continued: downloads, conversions, and single files."""

import json
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks._faults_readers import TASK, episodes
from benchmarks._faults_site import serving
from benchmarks._faults_steps import Step, again, hashes, names
from ringrl import recipes
from ringrl.errors import UserError
from ringrl.formats.exorl import write_episode
from ringrl.formats.minari import write_dataset
from ringrl.store import zarr
from ringrl.store.episode_store import DataSource, build

_DOWNLOAD, _HISTORIES, _CONVERT, _IMPORT, _EXPORT, _LINES = (
    recipes.load("data", name)
    for name in (
        "download_exorl",
        "collect_histories",
        "convert_store",
        "import_minari",
        "export_minari",
        "line_retrieval",
    )
)
_MINARI = "hopper/x-v0"


def _make_archive(folder: Path) -> None:
    (folder / "made").mkdir()
    with zipfile.ZipFile(folder / "site.zip", "w") as archive:
        for index, episode in enumerate(episodes(count=4, length=500, widths=(24, 6, 18))):
            path = write_episode(folder / "made", index, episode)
            archive.write(path, f"buffer/{path.name}")
    with serving(folder / "site.zip") as url:  # a port that is free
        (folder / "port").write_text(url.rpartition(":")[2])


def _download(folder: Path) -> None:
    os.environ["no_proxy"] = "*"
    with serving(folder / "site.zip", int((folder / "port").read_text())) as url:
        _DOWNLOAD.main(_DOWNLOAD.Args("walker", "rnd", folder / "rnd", url=url))


def _collect_histories(folder: Path) -> None:
    task, out = "hidden_point_mass_goal", folder / "built"
    _HISTORIES.main(_HISTORIES.Args(out, task, histories=2, trials=1, action_repeat=100, jobs=1, overwrite=True))


def _make_store_v2(folder: Path) -> None:
    """A store of format 2, of which there is no writer any more."""
    draw, lengths = np.random.default_rng(0), (30, 10, 50)
    rows = sum(lengths) + len(lengths)
    transition = draw.uniform(-1, 1, (rows, 5 + 1 + 1)).astype(np.float32)
    transition[:, -1] = 1
    first = np.cumsum([0, *(length + 1 for length in lengths)])
    paid = draw.uniform(size=rows).astype(np.float32)
    returns = np.array([paid[a + 1 : b].sum(dtype=np.float64) for a, b in zip(first[:-1], first[1:], strict=True)])
    arrays = {"transition": transition, "offsets": first, "source": np.zeros(len(lengths), np.int32)}
    arrays |= {f"reward/{TASK}": paid, f"return/{TASK}": returns}
    for name, values in arrays.items():
        writer = zarr.ColumnWriter(folder / "old" / name, values.shape[1:], values.dtype.type, chunk_rows=16)
        writer.append(values)
        writer.flush()
    about = {"format": "ringrl episode store", "version": 2, "domain": "cartpole", "tasks": [TASK]}
    about |= {"episodes": len(lengths), "steps": sum(lengths)}
    about |= {"dims": {"observation": 5, "action": 1, "reward": 1, "physics": 0}}
    about |= {"sources": [asdict(DataSource("a", "a", "rnd", episodes=len(lengths), first=0, last=0))]}
    about |= {"provenance": {"created": "2026-01-02T03:04:05+00:00", "relabel": "exact"}}
    (folder / "old/store.json").write_text(json.dumps(about))


def _convert(folder: Path) -> None:
    _CONVERT.main(_CONVERT.Args(str(folder / "old"), folder / "built", overwrite=True))


def _hopper(folder: Path) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    (folder / "minari").mkdir(exist_ok=True)


def _make_minari(folder: Path) -> None:
    _hopper(folder)
    write_dataset(_MINARI, episodes(widths=(11, 3, 12)), "Hopper-v5", description="to be imported")


def _import(folder: Path) -> None:
    _hopper(folder)
    _IMPORT.main(_IMPORT.Args((_MINARI,), folder / "built", task="Hopper-v5", overwrite=True))


def _make_hopper_store(folder: Path) -> None:
    _hopper(folder)
    build(folder / "store", episodes(widths=(11, 3, 12)), domain="Hopper", tasks=["Hopper-v5"])


def _export(folder: Path) -> None:
    _hopper(folder)
    _EXPORT.main(_EXPORT.Args(str(folder / "store"), _MINARI, overwrite=True))


def _write_lines(folder: Path) -> None:
    _LINES.main(_LINES.Args(folder / "built" / "lines.npy", documents=400, overwrite=True))


def _copy(folder: Path) -> None:
    (folder / "built").mkdir(exist_ok=True)
    with suppress(UserError):  # after a kill it may be there
        recipes.copy("td3", folder / "built" / "mine.py")


_STORE = hashes("built", but=("store.json",)), names("built")

DATA_STEPS = (
    Step("download", 3, _make_archive, *again(_download), hashes("rnd", but=("download.json",)), names("rnd")),
    Step("histories", 2, lambda folder: None, *again(_collect_histories), *_STORE),
    Step("convert", 3, _make_store_v2, *again(_convert), *_STORE),
    Step("import", 3, _make_minari, *again(_import), *_STORE),
    Step("minari", 2, _make_hopper_store, *again(_export), *2 * (names("minari/hopper/x-v0"),)),
    Step("lines", 2, lambda folder: None, *again(_write_lines), hashes("built")),
    Step("cp", 2, lambda folder: None, *again(_copy), hashes("built"), names("built")),
)
