"""An agent step with a KV cache and its peers' in turn, and environments: seconds of what a rollout pays, on CPU cores.

    pip install -e ".[bench]"
    python -m benchmarks.rollout                  # contexts of 4,000, 16,000 and 64,000 tokens; 1 and 16 environments
    python -m benchmarks.rollout --rounds 15      # more rounds

Timed is a whole `CachedDecoder.step`, from NumPy fields to NumPy raw outputs: 4 tokens appended for every environment
and their attention to the context, with `preset: small` in float32. `recomputed window` is the usual loop: the model
over its whole window at each step, jitted. `PyTorch` is the same decoder with the same parameters and a static cache,
at the fastest setting that is found in this run: its attention or two products, `torch.compile` or not, one thread or
all. `plain read` is the sum of as many numbers as the context's keys and values, by all cores, the fastest of NumPy,
C++ and PyTorch: no step that reads them from memory can be faster. `nearly empty` is a context of 64 tokens where there
is room for 64,000. Raw outputs of all are compared with ringrl's in float32.

Every subject is a process of its own, which compiles, warms up and waits for its turn; every round has its own order. A
turn is an untimed step, which wakes the process, and the median of those of a quarter of a second; a figure is the
median over the rounds. All processes are bound to the same cores. Environments are compared by
`benchmarks/_environments.py`.

The last line is one JSON object. `vs_recompute_4k`, `vs_torch`: seconds of the peer / seconds of ringrl; `vs_memory`:
seconds of the plain read / of ringrl, at 16,000 tokens and more; `nearly_empty_vs_full`: of a step / of a step; each is
the worst of its cases. `env_vs_dm_control`: control steps a second on all cores / of dm_control's plain loop on one, of
the worst task.
"""

import json
import os
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import _environments
from benchmarks._rollout_context import TOKEN_BYTES, Subject, prepare
from benchmarks._rollout_subjects import cached, plain_read, recomputed
from benchmarks._rollout_torch import torch_peer
from benchmarks._workers import Worker, orders, processor, run_once, seconds_of, serve

SUBJECTS = {
    "ringrl": "ringrl",
    "ringrl_bfloat16": "ringrl, bfloat16 cache",
    "ringrl_int8": "ringrl, int8 cache",
    "ringrl_empty": "ringrl, nearly empty",
    "recomputed": "recomputed window",
    "torch": "PyTorch, static cache",
    "read": "plain read",
}
CACHE_DTYPES = {"ringrl_bfloat16": "bfloat16", "ringrl_int8": "int8"}
NEARLY_EMPTY = 64  # tokens
TURN = 0.25  # seconds of timed steps
EQUAL = 1e-4  # of raw outputs in float32


@dataclass(frozen=True)
class Case:
    """A context, and who is compared in it."""

    key: str
    tokens: int
    envs: int
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """What one subject did in one case."""

    milliseconds: float
    error: float | None  # largest difference of raw outputs from ringrl's in float32
    setting: str


Found = dict[str, Figure]


@dataclass(frozen=True)
class Args:
    """Compare an agent step with its peers'."""

    rounds: int = 9
    """Turns of every subject."""
    cores: int = len(os.sched_getaffinity(0))
    """Processor cores that all subjects share."""
    quick: bool = False
    """Contexts so small that nothing is measured, to see that all runs."""
    worker: str | None = None
    """Used by the benchmark itself: the subject that this process is."""
    folder: Path | None = None
    """Used by the benchmark itself: what subjects share."""
    tokens: int = 0
    """Used by the benchmark itself."""
    envs: int = 0
    """Used by the benchmark itself."""


def cases(quick: bool) -> list[Case]:
    """What is measured."""
    short, middle, long = (256, 512, 1024) if quick else (4_000, 16_000, 64_000)
    all_dtypes = ("ringrl", *CACHE_DTYPES)
    found = [Case("recompute", short, envs, ("ringrl", "recomputed")) for envs in (1, 16)]
    found += [Case("peer", middle, envs, (*all_dtypes, "torch", "read")) for envs in (1, 16)]
    return [*found, Case("room", long, 1, (*all_dtypes, "ringrl_empty", "read"))]


def main(args: Args) -> None:
    """Print a table for each case and for the environments, then the ratios as JSON."""
    if args.worker:
        return work(args)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    print(f"{processor()}, {args.cores} cores; one row of keys and values is {TOKEN_BYTES} bytes a token in float32")
    found: dict[Case, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        all_cases = cases(args.quick)
        longest = max(case.tokens for case in all_cases if case.key != "room")  # a longer one repeats it
        options = ["--folder", folder, "--cores", str(args.cores), *(["--quick"] if args.quick else [])]
        run_once("benchmarks.rollout", [*options, "--worker", "prepare", "--tokens", str(longest)])
        for case in all_cases:
            found[case] = measure(case, args.rounds, options)
            print_table(case, found[case])
    environments = compare_environments(args.quick)
    print(json.dumps(summary(found, environments)))


def measure(case: Case, rounds: int, options: list[str]) -> Found:
    """Figures of the subjects of a case, which take turns."""
    options = [*options, "--tokens", str(case.tokens), "--envs", str(case.envs), "--worker"]
    seconds: dict[str, list[float]] = {name: [] for name in case.subjects}
    settings, outputs = {}, {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in case.subjects:  # one after the other: compiling together would only take turns on the cores
            hint = ". Is the extra there? pip install -e '.[bench]'"
            workers[name] = stack.enter_context(
                Worker(SUBJECTS[name], "benchmarks.rollout", [*options, name], hint=hint)
            )
            settings[name] = json.loads(workers[name].receive())
        for order in orders(case.subjects, rounds):
            for name in order:
                seconds[name].append(float(workers[name].ask("turn")))
        for name in case.subjects:
            outputs[name] = np.array(json.loads(workers[name].ask("outputs")))
    errors = {name: difference(name, outputs[name], outputs["ringrl"]) for name in case.subjects}
    return {
        name: Figure(1e3 * statistics.median(seconds[name]), errors[name], settings[name]) for name in case.subjects
    }


def difference(name: str, raw: np.ndarray, expected: np.ndarray) -> float | None:
    """The largest difference of raw outputs; None where none are compared. SystemExit where they must be equal."""
    if name in ("ringrl", "ringrl_empty", "read"):
        return None
    error = float(np.abs(raw - expected).max())
    if name not in CACHE_DTYPES and not error <= EQUAL:
        raise SystemExit(f"{SUBJECTS[name]}: raw outputs differ from ringrl's by {error:.1e}: it is not the same model")
    return error


def work(args: Args) -> None:
    """Be one subject: compile, warm up, then take a turn for every line that comes in; or prepare the context."""
    assert args.folder is not None and args.worker is not None
    os.environ["JAX_PLATFORMS"] = "cpu"
    if args.worker == "prepare":
        prepare(args.folder, args.tokens)
        return print("{}")
    subject = make_subject(args.worker, args)

    def answer(line: str) -> object:
        subject.reset()
        outputs = subject.step()  # wakes what the system has put aside while the others had their turns
        if line == "outputs":
            return json.dumps(outputs.tolist())
        seconds: list[float] = []
        while sum(seconds) < TURN and len(seconds) < 50:
            subject.reset()
            seconds.append(seconds_of(subject.step))
        return statistics.median(seconds)

    answer("turn")
    serve(json.dumps(subject.setting), answer)


def make_subject(name: str, args: Args) -> Subject:
    """The subject of this process."""
    assert args.folder is not None
    ours = partial(cached, args.folder, envs=args.envs, room=args.tokens)
    if name == "recomputed":
        return recomputed(args.tokens, args.envs)
    if name == "torch":
        return torch_peer(args.folder, args.tokens, args.envs, args.cores, args.quick)
    if name == "read":
        return plain_read(args.folder, args.tokens, args.envs, args.cores)
    if name == "ringrl_empty":
        return ours(tokens=NEARLY_EMPTY, dtype="float32")
    return ours(tokens=args.tokens, dtype=CACHE_DTYPES.get(name, "float32"))


def print_table(case: Case, found: Found) -> None:
    """One case: milliseconds, the rate at which keys and values are read, and how it compares with ringrl."""
    print(f"\n{case.tokens:,} tokens, {case.envs} environments, 4 tokens a step; medians")
    print(f"{'':<26}{'ms a step':>10}{'GB/s':>7}{'of plain read':>15}{'vs ringrl':>11}{'error':>9}  setting")
    for name, x in found.items():
        size = {"bfloat16": 0.5, "int8": 0.25 + 1 / 32}.get(CACHE_DTYPES.get(name, ""), 1.0)
        rate = case.tokens * case.envs * TOKEN_BYTES * size / x.milliseconds / 1e6
        reads = name not in ("recomputed", "ringrl_empty")
        share = f"{found['read'].milliseconds * size / x.milliseconds:.0%}" if reads and "read" in found else ""
        error = "" if x.error is None else f"{x.error:.0e}"
        numbers = f"{x.milliseconds:>10.2f}{f'{rate:.1f}' if reads else '':>7}{share:>15}"
        ratio = f"{x.milliseconds / found['ringrl'].milliseconds:.2f} x"
        print(f"{SUBJECTS[name]:<26}{numbers}{ratio:>11}{error:>9}  {x.setting}".rstrip(), flush=True)


def compare_environments(quick: bool) -> dict[str, Any]:
    """Control steps a second, printed as they are known."""
    options: dict[str, Any] = {"environments": 128}
    if quick:
        options = {"tasks": ("cartpole_swingup",), "environments": 4, "steps": 3, "rounds": 1}
    print(f"\ncontrol steps a second, {options['environments']} environments; medians")
    print(f"{'':<26}{'dm_control':>11}{'one process':>13}{'all cores':>11}{'all cores / dm_control':>24}")
    found = {}
    for task, x in _environments.compare(**options).items():
        print(f"{task:<26}{x.dm_control:>11.0f}{x.one_process:>13.0f}{x.all_cores:>11.0f}{x.all_cores_ratio:>24.2f}")
        found[task] = {name: round(value, 3) for name, value in x._asdict().items()}
    return found | {"environments": options["environments"]}


def summary(found: dict[Case, Found], environments: dict[str, Any]) -> dict[str, Any]:
    """The JSON line."""

    def ratios(over: str, under: str, keys: tuple[str, ...]) -> dict[str, float]:
        return {
            f"{case.tokens}x{case.envs}": round(x[over].milliseconds / x[under].milliseconds, 3)
            for case, x in found.items()
            if case.key in keys
        }

    by_case = {
        "vs_recompute_4k": ratios("recomputed", "ringrl", ("recompute",)),
        "vs_torch": ratios("torch", "ringrl", ("peer",)),
        "vs_memory": ratios("read", "ringrl", ("peer", "room")),
    }
    empty = ratios("ringrl_empty", "ringrl", ("room",))
    tasks = {task: x["all_cores_ratio"] for task, x in environments.items() if task != "environments"}
    worst = {key: min(values.values()) for key, values in by_case.items()}
    worst |= {"nearly_empty_vs_full": max(empty.values()), "env_vs_dm_control": min(tasks.values())}
    steps = {
        f"{case.tokens}x{case.envs}": {
            name: {"ms": round(x.milliseconds, 3), "error": x.error, "setting": x.setting} for name, x in each.items()
        }
        for case, each in found.items()
    }
    return worst | {"by_case": by_case, "steps": steps, "environments": environments, "processor": processor()}


if __name__ == "__main__":
    main(tyro.cli(Args))
