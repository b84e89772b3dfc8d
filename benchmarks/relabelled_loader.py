"""What it costs that contexts are relabelled as they are read: the loader's time a batch, beside a training step's.

    python -m benchmarks.relabelled_loader               # rows as in configs/relabelled_dpt.yaml: 12,800 tokens, tiny
    python -m benchmarks.relabelled_loader --rounds 30   # more rounds
    python -m benchmarks.relabelled_loader --quick       # at a size that measures nothing

A store is built of real episodes of the point mass under correlated random actions, with the rewards of point_mass_easy
and the features of the config's family. The peer is the same context sampler of the same agent on the same store with
the rewards that it has: what is read is of the same size, and nothing is computed. Subjects:

  decision_pretrained   trajectories in no order: recorded rewards; those of a member drawn for each context; and the
                        same with the actions of a teacher, a TD3 of two layers of 128, as the labels of all steps
  agentic_transformer   trajectories ascending by return: by the recorded returns; and by those under a drawn member,
                        which are computed before a context is ordered, and its rewards again when it is read

Loaders read in one process of one CPU, with no thread of their own, in turns whose order is new in every round. A turn
is an untimed batch and a timed one. The step is that of `ringrl train` with the config's model, on JAX's default device
or, where that is a CPU, on `--cores` of them, in a process that runs alone. In training the loader works ahead in
threads beside the step, so on an accelerator none of this is waited for unless it is longer than the step. Figures are
medians over the rounds; where the fastest is far below, other work was running: measure again.

The last line is one JSON object: `relabelling_share_of_step`, the most that relabelling adds to a batch, labels
included, over the step's seconds (the goal is below 0.05); `shares`, the same by subject; the milliseconds of each, of
the step, the tokens of a batch, and the step's device.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks._workers import medians, orders, run_once, seconds_of
from ringrl.batch import Batch
from ringrl.collect.correlated_noise import CorrelatedNoise
from ringrl.collect.record import record_episode
from ringrl.config import RunConfig, load_config, parse_config
from ringrl.envs import RewardFamily, family_of, make_env
from ringrl.episode import Episode
from ringrl.relabelling.features import FeatureReader
from ringrl.store.episode_store import build

CONFIG, RECORDED = "relabelled_dpt", "point_mass_easy"
SUBJECTS = {
    "recorded": "decision_pretrained, recorded rewards",
    "members": "decision_pretrained, drawn members",
    "labelled": "decision_pretrained, members and labels",
    "at_recorded": "agentic_transformer, recorded rewards",
    "at_members": "agentic_transformer, drawn members",
}
PEERS = {"members": "recorded", "labelled": "recorded", "at_members": "at_recorded"}
CORRELATION, SCALE = 0.92, 1.2
"""Of the random actions, from one agent step to the next, and their deviation before they are clipped."""


@dataclass(frozen=True)
class Args:
    """Time a loader that relabels and one that does not, and a training step."""

    trajectories: int = 128
    """In a context, which fills a row."""
    agent_steps: int = 100
    """In a trajectory."""
    episodes: int = 512
    """In the store."""
    rounds: int = 15
    """Batches of every subject; a third as many training steps."""
    cores: int = 2
    """Processor cores of the training step, where it runs on processors."""
    quick: bool = False
    """Rows of 4 trajectories of 5 agent steps, from 8: to see that it runs."""
    work: str | None = None
    """Used by the benchmark itself: what this process does: prepare, load or step."""
    folder: Path = Path()
    """Used by the benchmark itself: where the store and the teacher are."""


def main(args: Args) -> None:
    """Print a table, then the shares as JSON."""
    if args.work:
        return print(json.dumps({"prepare": prepare, "load": load, "step": step}[args.work](args)))
    if args.quick:
        args = Args(trajectories=4, agent_steps=5, episodes=8, rounds=2, cores=args.cores)
    with tempfile.TemporaryDirectory(prefix="ringrl-relabelled-") as folder:
        began = time.perf_counter()
        run(args, "prepare", folder)
        print(f"{args.episodes} episodes, and a teacher ({time.perf_counter() - began:.1f} s)", flush=True)
        cpus = sorted(os.sched_getaffinity(0))
        loaders = run(args, "load", folder, {cpus[0]})
        training = run(args, "step", folder, set(cpus[: args.cores]))
    report(loaders, training)


def run(args: Args, work: str, folder: str, cpus: set[int] | None = None) -> Any:
    """What a process of its own answers."""
    names = ("trajectories", "agent_steps", "episodes", "rounds", "cores")
    options = [each for name in names for each in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    return run_once("benchmarks.relabelled_loader", [*options, "--work", work, "--folder", folder], cpus)


def report(loaders: dict[str, list[float]], training: dict[str, Any]) -> None:
    """Print the table and the JSON line, of the seconds of every turn."""
    found, step_seconds = medians(loaders), medians({"step": training["seconds"]})["step"]
    shares = {name: (found[name] - found[peer]) / step_seconds for name, peer in PEERS.items()}
    print(f"\na batch of {training['tokens']:,} tokens; the step on {training['device']}; medians")
    print(f"{'':<42}{'ms':>10}{'fastest':>10}{'added, ms':>11}{'of a step':>11}")
    for name, title in SUBJECTS.items():
        numbers = f"{found[name] * 1e3:>10.2f}{min(loaders[name]) * 1e3:>10.2f}"
        added = f"{shares[name] * step_seconds * 1e3:>11.2f}{shares[name]:>11.2%}" if name in PEERS else ""
        print(f"{title:<42}{numbers}{added}")
    print(f"{'training step':<42}{step_seconds * 1e3:>10.1f}{min(training['seconds']) * 1e3:>10.1f}", flush=True)
    summary = {"relabelling_share_of_step": round(max(shares.values()), 4)}
    summary |= {"shares": {name: round(share, 4) for name, share in shares.items()}}
    summary |= {"ms": {name: round(seconds * 1e3, 3) for name, seconds in found.items()}}
    summary |= {"step_ms": round(step_seconds * 1e3, 1), "tokens": training["tokens"], "device": training["device"]}
    print(json.dumps(summary))


def config_of(args: Args, **data: str) -> RunConfig:
    """The shipped config, with rows of one context each; `data` replaces settings of that section."""
    agent = {"trajectories": args.trajectories, "fewest": args.trajectories, "teacher": args.folder / "teacher"}
    values = {f"agent.{name}": value for name, value in agent.items()}
    values |= {f"data.{name}": value for name, value in ({"store": args.folder / "store"} | data).items()}
    values |= {"model.max_steps": args.agent_steps, "training.row_steps": args.trajectories * args.agent_steps}
    return load_config(CONFIG, tuple(f"{name}={value}" for name, value in values.items()))


def family_in(config: RunConfig) -> RewardFamily:
    """Whose members pay."""
    family = family_of(config.data.task)
    assert family is not None, f"{CONFIG} is of a family"
    return family


def prepare(args: Args) -> int:
    """Build the store and train the teacher for one step, for what it has learned costs nothing; gives the steps."""
    import ringrl

    config = config_of(args)
    family, repeat = family_in(config), config.data.action_repeat
    rng = np.random.default_rng(0)
    env = make_env(RECORDED, seed=0, action_repeat=repeat, time_limit=args.agent_steps * repeat)

    def episodes() -> Iterator[Episode]:
        for _ in range(args.episodes):
            noise = CorrelatedNoise(2, CORRELATION, rng)
            yield record_episode(env, lambda _: np.clip(SCALE * noise.draw(), -1, 1).astype(np.float32))[0]  # noqa: B023

    features = {family.name: FeatureReader(family)}
    store = build(args.folder / "store", episodes(), domain=family.domain, tasks=(RECORDED,), features=features)
    data = {"store": str(store), "task": f"visible_{family.name}", "action_repeat": repeat}
    steps = {"steps": 1, "log_every": 1, "checkpoint_every": 1}
    agent = {"name": "td3", "hidden": [128, 128]}
    ringrl.train({"data": data, "agent": agent, "training": steps}, out=args.folder / "teacher")
    return args.episodes * args.agent_steps


def loaders_of(args: Args) -> dict[str, Iterator[Batch]]:
    """Every subject: batches without end, made in the thread that asks for them."""
    from ringrl.agent import make_agent
    from ringrl.sampling.loader import make_loader
    from ringrl.sampling.normalizer import Normalizer
    from ringrl.sequence_agent import SequenceAgent
    from ringrl.training.teacher import teacher_labels
    from ringrl.training.training_data import open_episodes

    hidden, recorded = config_of(args), config_of(args, task=RECORDED)
    transformer = {"name": "agentic_transformer", "trajectories": args.trajectories}
    found = {}
    for name in SUBJECTS:
        config = recorded if name.endswith("recorded") else hidden
        data, training = config.data, config.training
        ascending = parse_config({"data": data.model_dump(), "agent": transformer}, CONFIG).agent
        agent = make_agent(ascending if name.startswith("at_") else config.agent)
        assert isinstance(agent, SequenceAgent)
        episodes = open_episodes(data)
        found[name] = make_loader(
            episodes,
            agent.context_sampler(episodes, data.task, data.action_repeat),
            data.task,
            Normalizer.fit(episodes, data.task, action_repeat=data.action_repeat),
            batch=training.batch,
            steps=training.row_steps,
            seed=0,
            action_repeat=data.action_repeat,
            packing=training.packing,
            labels=teacher_labels(args.folder / "teacher", config, episodes).of if name == "labelled" else None,
            threads=0,
            prefetch=0,
        )
    return found


def load(args: Args) -> dict[str, list[float]]:
    """Seconds of every timed batch, by subject."""
    loaders = loaders_of(args)
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for batches in loaders.values():
        next(batches)  # the first opens files and compiles the teacher
    for order in orders(list(loaders), args.rounds):
        for name in order:
            next(loaders[name])
            seconds[name].append(seconds_of(lambda name=name: next(loaders[name])))
    return seconds


def step(args: Args) -> dict[str, Any]:
    """Seconds of every timed training step on a labelled batch, the batch's tokens, and the device."""
    import jax

    from ringrl.agent import make_decoder
    from ringrl.training.mesh import make_mesh, place_batch
    from ringrl.training.state import init_state, make_train_step

    config, batch = config_of(args), next(loaders_of(args)["labelled"]).asdict()
    sizes = {name: batch[name].shape[-1] for name in ("observation", "action")}
    decoder, mesh = make_decoder(config.agent), make_mesh(config.mesh)
    graph, state = init_state(config, decoder, sizes, mesh)
    train_step = make_train_step(config, decoder, graph, mesh, jax.tree.map(lambda x: x.sharding, state))
    placed, seconds = place_batch(batch, mesh), []

    def one() -> None:
        nonlocal state
        state, metrics = train_step(state, placed)
        jax.block_until_ready((state, metrics))

    one()  # compiles
    for _ in range(max(2, args.rounds // 3)):
        seconds.append(seconds_of(one))
    tokens = int((batch["segment_ids"] > 0).sum()) * decoder.tokens.tokens_per_step
    device = jax.devices()[0]
    where = f"CPU cores: {len(os.sched_getaffinity(0))}" if device.platform == "cpu" else device.device_kind
    return {"seconds": seconds, "tokens": tokens, "device": where}


if __name__ == "__main__":
    main(tyro.cli(Args))
