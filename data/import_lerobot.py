"""LeRobot data sets -> one episode store: recordings of robots, of their states and actions.

    ringrl data import_lerobot datasets/pusht --out stores/pusht
    ringrl data import_lerobot datasets/cube --observation observation.state observation.velocity --out stores/cube

A data set is a folder with `meta/` and `data/`, of LeRobot's version 2 or 3. Each becomes one source, in the order
given. Videos and images are left out. Without `next.reward` every reward is 0, from which behavior cloning can learn.
Needs `pip install 'ringrl[lerobot]'`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from ringrl.episode import Episode
from ringrl.errors import UserError
from ringrl.formats.imported import Bounds, common_task, domain_of, known_bounds
from ringrl.formats.lerobot import ACTION, REWARD, STATE, StepFeatures, action_span, choose_features, read_lerobot
from ringrl.formats.lerobot_index import LeRobotData, open_lerobot
from ringrl.progress import tracked
from ringrl.store.episode_store import DataSource, build, open_store
from ringrl.store.store_summary import summary


@dataclass(frozen=True)
class Args:
    """Build an episode store from LeRobot data sets."""

    datasets: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of data sets. Each becomes one source."""
    out: Path
    """The store to make."""
    observation: tuple[str, ...] = (STATE,)
    """The features that make an observation, joined in this order."""
    action: tuple[str, ...] = (ACTION,)
    """The features that make an action, likewise."""
    reward: str | None = None
    """The feature that is the reward, such as next.success. Default: next.reward, where there is one, else 0."""
    ignore_done: bool = False
    """Take next.done for a time limit, which ends no episode for good."""
    instruction: tuple[str, ...] = ()
    """Only the episodes that show one of these tasks, in the data's own words."""
    task: str | None = None
    """The task's name; default that of the folder. An environment, such as Hopper-v5, has bounds of actions."""
    low: tuple[float, ...] = ()
    """The actions that become -1, one number for all or one for each. Default: those of the task's environment, where
    it is known here, else the least of the data."""
    high: tuple[float, ...] = ()
    """Likewise, those that become 1."""
    clip: bool = False
    """Clip actions to their bounds, however far they are beyond, as the robot does too."""
    overwrite: bool = False
    """Replace a store of that name."""


def main(args: Args) -> None:
    """Build the store.

    Raises:
        UserError: in one line, for anything wrong with the data sets. No store is left then.
    """
    if not args.datasets:
        raise UserError("no data set given: name a folder with meta/info.json in it")
    datasets = [open_lerobot(folder, args.instruction) for folder in args.datasets]
    task = args.task or common_task([(str(data.folder), data.name) for data in datasets])
    wanted = args.observation, args.action, args.reward
    features = [choose_features(data, *wanted, done=not args.ignore_done) for data in datasets]
    width = features[0].action_width(datasets[0])
    bounds = known_bounds(task, width, args.low, args.high) or action_span([*zip(datasets, features, strict=True)])
    build(
        args.out,
        tracked(_episodes(args, datasets, features, bounds), "building", sum(len(data.episodes) for data in datasets)),
        domain=domain_of(task),
        tasks=(task,),
        sources=[_source(*each, bounds) for each in zip(datasets, features, strict=True)],
        provenance={"relabel": "recorded", "pyarrow": version("pyarrow")} | ({"clip": True} if args.clip else {}),
        overwrite=args.overwrite,
    )
    print(summary(open_store(args.out), f"{len(datasets)} data set(s)"))
    for data, read in zip(datasets, features, strict=True):
        _print_notes(data, read)


def _source(data: LeRobotData, features: StepFeatures, bounds: Bounds) -> DataSource:
    about: dict[str, Any] = {"format": f"lerobot {data.info['codebase_version']}", "robot": data.info.get("robot_type")}
    about |= {"observation": features.observation, "action": features.action, "reward": features.reward}
    about |= {"instructions": data.instructions, "action_bounds": [bound.tolist() for bound in bounds]}
    return DataSource(data.name, data.name, data.info.get("robot_type"), None, about)


def _episodes(
    args: Args, datasets: list[LeRobotData], features: list[StepFeatures], bounds: Bounds
) -> Iterator[tuple[Episode, int]]:
    for source, (data, read) in enumerate(zip(datasets, features, strict=True)):
        for episode in read_lerobot(data, read, bounds, clip=args.clip):
            yield episode, source


def _print_notes(data: LeRobotData, features: StepFeatures) -> None:
    """What is not in the store, or not known, and a reader of it might expect."""
    notes = ["not recorded: the observation after an episode's last action (the last one is repeated)"]
    if features.done is None:
        notes.append("not recorded, or ignored: whether an episode ended for good (the discount is 1)")
    if features.reward is None:
        notes.append(f"no {REWARD}: every reward is 0; behavior cloning reads none, and --reward takes another feature")
    if data.unread:
        notes.append(f"left out, for nothing here learns from pictures: {', '.join(data.unread)}")
    if len(data.instructions) > 1:
        notes.append(
            f"{len(data.instructions)} instructions, which no observation tells apart; --instruction picks some"
        )
    print("\n".join(f"  {data.name}: {note}" for note in notes))


if __name__ == "__main__":
    main(tyro.cli(Args))
