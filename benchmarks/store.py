"""The episode store at ExoRL's scale, and the ways in which others keep episodes, read in turn.

    pip install -e ".[dev]"
    python -m benchmarks.store                           # 10 million transitions: 5 GB of disk, about five minutes
    python -m benchmarks.store --transitions 1000000     # a tenth of it

The data are `--rollouts` real episodes of dm_control's walker under random actions (24 observations, 6 actions, 18
states), over and over as they are: no format compresses beyond one episode, so repeated ones take the place that new
ones would. All formats contain the same episodes, 10,000 of them by default:

  ringrl       the store: arrays of what training reads, of rewards and of physics states, Zarr v3 in files of 32 MB
  npz          one `np.savez_compressed` an episode, as ExoRL publishes its data
  h5py         one HDF5 file with a group an episode, as Minari writes it: not compressed and without states
  minari       the same file read through `MinariDataset.iterate_episodes`

A chain is 128 random episodes, of which observation, action, reward and discount (HDF5: terminations) are wanted. Every
subject reads the same chains in turn, in an order that changes every round, in one process. TensorStore, below ringrl,
reads with a pool of threads; npz, h5py and Minari are read by one thread, as their own readers do. npz could be read by
several threads too, and is not. So all is read again by a process that is bound to one CPU from its start.

Every file was just written and is in the page cache, if memory is large enough: a line warns where it is not. ringrl
keeps the rewards in memory (40 MB), as it does by default at this size. A figure is the median over the rounds. Memory
is the peak of a process that does nothing but build, whose episodes come from a generator.

The last line is one JSON object: vs_npz, vs_h5py, vs_minari, how many times faster a chain is; chain128_ms;
vs_npz_1_cpu and chain128_ms_1_cpu, the same on one CPU; build_peak_mb; open_ms; size_vs_npz, the store's bytes over
those of the npz files.
"""

import json
import os
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks._store_formats import LENGTH, TASK, episodes_of, readers, roll_out, write_minari, write_npz
from benchmarks._workers import medians, orders, run_once, seconds_of
from ringrl.store.episode_store import DataSource, build, open_store

CHAIN = 128
"""Episodes that are read at a time."""


@dataclass(frozen=True)
class Args:
    """Build a large store, and compare its reading with that of other formats."""

    transitions: int = 10_000_000
    """Rounded down to whole episodes of 1000."""
    rollouts: int = 50
    """Different episodes among them."""
    rounds: int = 15
    """Chains that every subject reads."""
    folder: Path | None = None
    """Where the files are made, in a folder of their own that is removed at the end; default the system's for such."""
    build: Path | None = None
    """Used by the benchmark itself: the folder in which this process builds the store."""
    read: Path | None = None
    """Used by the benchmark itself: the folder whose files this process reads."""


def main(args: Args) -> None:
    """Print what was measured, then the ratios as JSON."""
    if args.build:
        return build_here(args.build, args.transitions // LENGTH)
    if args.read:
        return print(json.dumps(read_in_turn(args.read, args.transitions // LENGTH, args.rounds)))
    count = args.transitions // LENGTH
    if count < CHAIN:
        raise SystemExit(f"--transitions {args.transitions} make {count} episodes, and a chain is of {CHAIN}")
    folder = Path(tempfile.mkdtemp(prefix="ringrl-store-", dir=args.folder))
    try:
        measure(folder, count, args)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, count: int, args: Args) -> None:
    """Write all formats into `folder`, and read them."""
    needed, free = count * LENGTH * 1100, shutil.disk_usage(folder).free
    if needed > free:
        raise SystemExit(f"{folder} has {free / 1e9:.0f} GB left of {needed / 1e9:.0f} needed; see --folder")
    began = time.perf_counter()
    roll_out(args.rollouts, folder / "rollouts.npz")
    report(f"{args.rollouts} episodes rolled out", time.perf_counter() - began)
    built = run_alone("--build", folder, count, args)
    rate = count * LENGTH / built["seconds"] / 1e6
    peak = f"peak memory {built['peak_mb']:.0f} MB ({built['before_mb']:.0f} MB before the first episode)"
    report(f"{count:,} episodes built: {rate:.2f} million transitions/s, {peak}", built["seconds"])
    sizes = {"ringrl": size_of(folder / "store")}
    for name, write in {"npz": write_npz, "h5py": write_minari}.items():
        began = time.perf_counter()
        write(folder, count)
        sizes[name] = size_of(folder / name)
        report(f"{name} written", time.perf_counter() - began)
    opening = {number: open_ms(folder, number) for number in sorted({10, count // 10, count})}
    print("opening: " + ", ".join(f"{ms:.1f} ms of {number:,} episodes" for number, ms in opening.items()))
    os.sync()  # else what was written is brought to the disk while it is read
    warn_of_cache(sum(sizes.values()))
    found = read_in_turn(folder, count, args.rounds)
    print_table(found, sizes, count, len(os.sched_getaffinity(0)))
    alone = run_alone("--read", folder, count, args, cpus={min(os.sched_getaffinity(0))})
    print_table(alone, sizes, count, 1)
    ratios = {f"vs_{name}": round(found[name] / found["ringrl"], 2) for name in ("npz", "h5py", "minari")}
    ratios |= {"chain128_ms": round(found["ringrl"] * 1e3, 2), "build_peak_mb": round(built["peak_mb"])}
    ratios |= {"open_ms": round(opening[count], 2), "size_vs_npz": round(sizes["ringrl"] / sizes["npz"], 3)}
    ratios |= {"vs_npz_1_cpu": round(alone["npz"] / alone["ringrl"], 2)}
    print(json.dumps(ratios | {"chain128_ms_1_cpu": round(alone["ringrl"] * 1e3, 2)}))


def run_alone(step: str, folder: Path, count: int, args: Args, cpus: set[int] | None = None) -> dict[str, float]:
    """What a process that does `step` alone prints."""
    options = ["--transitions", str(count * LENGTH), "--rounds", str(args.rounds), step, str(folder)]
    return run_once("benchmarks.store", options, cpus)


def warn_of_cache(written: int) -> None:
    """Print a line if the files do not fit into the page cache."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if written > available:
        print(f"warning: {written / 1e9:.1f} GB written, {available / 1e9:.1f} GB of memory: the disk is measured too")


def print_table(found: dict[str, float], sizes: dict[str, int], count: int, cpus: int) -> None:
    """Print the median seconds, and what each format takes of the disk."""
    where = f"on {cpus} CPU{'s' if cpus > 1 else ''}"
    print(f"\n{where:<16}{'GB':>8}{'B/transition':>14}{'chain of 128, ms':>18}{'times ringrl':>14}")
    for name, seconds in found.items():
        size = sizes["h5py" if name == "minari" else name]
        columns = f"{size / 1e9:>8.2f}{size / count / LENGTH:>14.0f}{seconds * 1e3:>18.1f}"
        print(f"{name:<16}{columns}{seconds / found['ringrl']:>14.1f}", flush=True)


def report(what: str, seconds: float) -> None:
    """Print what took how long."""
    print(f"{what} ({seconds:.1f} s)", flush=True)


def build_here(folder: Path, count: int) -> None:
    """Build the store and print seconds and memory as JSON."""
    before, began = peak_mb(), time.perf_counter()
    episodes = ((episode, 0) for episode in episodes_of(folder, count))
    build(
        folder / "store",
        episodes,
        domain="walker",
        tasks=[TASK],
        sources=[DataSource("random", "random")],
        provenance={},
    )
    print(json.dumps({"seconds": time.perf_counter() - began, "before_mb": before, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """The peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def open_ms(folder: Path, count: int) -> float:
    """Median milliseconds of opening a store of so many episodes."""
    path = folder / "store"
    if count * LENGTH != int(json.loads((path / "store.json").read_text())["steps"]):
        path = folder / f"store-{count}"
        sources = [DataSource("random", "random")]
        episodes = ((episode, 0) for episode in episodes_of(folder, count))
        build(path, episodes, domain="walker", tasks=[TASK], sources=sources, provenance={})
    seconds = [seconds_of(lambda: open_store(path)) for _ in range(9)]
    return medians({"open": seconds})["open"] * 1e3


def read_in_turn(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Median seconds of a chain, by subject."""
    subjects = readers(folder, count)
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    rng = np.random.default_rng(1)
    for order in orders(list(subjects), rounds + 1):  # the first round is not counted
        chain = rng.choice(count, CHAIN, replace=False).tolist()
        for name in order:
            seconds[name].append(seconds_of(lambda name=name, chain=chain: subjects[name](chain)))
    return medians({name: values[1:] for name, values in seconds.items()})


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "disable")
    main(tyro.cli(Args))
