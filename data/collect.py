"""Episodes of a task, in ExoRL's format: of random actions, of random network distillation, or TD3's learning history.

    ringrl data collect --task cartpole_swingup --policy td3 --episodes 60 --out datasets/cartpole/td3
    ringrl data collect --task point_mass_easy --policy correlated --episodes 2000 --time-limit 400

Episodes are written in the order in which they were collected, one row an environment step, also with an action repeat
(`--action-repeat`). The recorded reward is always the task's, also under `rnd`, which learns from its intrinsic reward
alone, as ExoRL's collectors did (Yarats et al. 2022, section 3). In point_mass_maze the rewards of all four tasks are
recorded, a column each, as in ExoRL's files. Any environment of Gymnasium's with Box spaces will do, also your own
(`--task my_module:Rig-v0`); where it gives no physics state, the files have none. The seed determines everything. Where
the collection is interrupted, whole episodes stay in OUT.unfinished, and the same command goes on.
"""

import importlib.metadata
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float32
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ringrl import envs, recipes
from ringrl.collect.random_collectors import CorrelatedCollector, RandomCollector
from ringrl.collect.record import AgentSteps, record_episode
from ringrl.collect.unfinished import BUFFER, State, Unfinished, unfinished_folder
from ringrl.ending import Stopped, finishing
from ringrl.envs import DMControlEnv
from ringrl.errors import UserError
from ringrl.files import user_path
from ringrl.formats.description import COLLECT
from ringrl.formats.exorl import write_episode
from ringrl.progress import progress_bar
from ringrl.relabelling.rewards import Relabeler
from ringrl.training.transitions import pack, unpack

# In ExoRL's files of these domains the reward has a column for each of the domain's tasks.
_RECORDS_EVERY_TASK = ("point_mass_maze",)

td3: Any = recipes.load("agents", "td3")  # a recipe is found by path, so its types are not known before it runs


@dataclass(frozen=True)
class Args:
    """Collect episodes of a task."""

    task: str = "cartpole_swingup"
    """{domain}_{task} of dm_control's suite or of ExoRL, or an id of Gymnasium's, such as Pendulum-v1."""
    policy: Literal["random", "correlated", "rnd", "td3"] = "td3"
    """random: uniform actions; correlated: random ones that last; rnd: TD3 on the RND reward alone; td3: the task's."""
    episodes: int = 60
    """Episodes to collect."""
    out: Path | None = None
    """Folder to make; default datasets/DOMAIN/POLICY."""
    seed: int = 0
    """Of the initial states, the weights, the noise and the minibatches."""
    action_repeat: int = 4
    """Environment steps per agent step."""
    time_limit: int | None = None
    """Environment steps of an episode; default: the task's own."""
    time_constant: float = 2.5
    """Of correlated actions: the seconds in which their correlation falls to 1/e (0.92 in 0.2 s)."""
    scale: float = 1.2
    """Of correlated actions: their standard deviation before they are clipped to [-1, 1]."""
    overwrite: bool = False
    """Replace a folder that was collected before."""
    learner: td3.CollectorConfig = field(default_factory=td3.CollectorConfig)  # pyright: ignore[reportInvalidTypeForm]
    """TD3's hyper-parameters (agents/td3.py); `reward` follows from the policy."""


class Collector(Protocol):
    """A policy that acts in the episodes and may learn from each."""

    def act(self, observation: Float32[np.ndarray, " observation"]) -> Float32[np.ndarray, " action"]:
        """The next action, in [-1, 1]."""
        ...

    def learn(self, episode: AgentSteps) -> None:
        """Take in an episode that has just ended."""
        ...

    def state(self) -> State:
        """What it has learnt and drawn, between two episodes."""
        ...

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        ...


class TD3Collector:
    """TD3 (Fujimoto et al. 2018) with exploration noise; it learns between episodes, in a few compiled calls."""

    def __init__(
        self, config: Any, observation_size: int, action_size: int, seed: int, noise: int | list[int] | None = None
    ) -> None:
        """`config`: of agents/td3.py. `noise`: seed of the actions and minibatches, if not `seed`."""
        self._config, self._rng = config, np.random.default_rng(seed if noise is None else noise)
        self._state = td3.init(config, observation_size, action_size, seed)
        self._replay = td3.make_replay(config, config.capacity, observation_size, action_size)
        self._agent_steps, self._updates_due = 0, 0.0

    def act(self, observation: Float32[np.ndarray, " observation"]) -> Float32[np.ndarray, " action"]:
        """The policy's action with exploration noise."""
        self._agent_steps += 1
        return td3.explore(self._config, self._state, observation, self._agent_steps - 1, self._rng)

    def learn(self, episode: AgentSteps) -> None:
        """Store the episode and, once the warm-up is over, take `update_to_data` gradient steps for each agent step.

        Raises:
            FloatingPointError: if learning diverged.
        """
        self._replay.add_episode(*episode)
        if self._agent_steps < self._config.warmup:
            return
        self._updates_due += len(episode.action) * self._config.update_to_data
        while self._updates_due >= self._config.updates_per_call:
            batches = self._replay.sample(self._config.updates_per_call, self._rng)
            self._state, metrics = td3.update(self._config, self._state, batches)
            self._updates_due -= self._config.updates_per_call
            if not np.isfinite(metrics["loss"]):
                raise FloatingPointError(f"TD3 diverged at gradient step {int(self._state.step)}: lower its step sizes")

    def state(self) -> State:
        """Its networks, its replay, the draws, and how far it is."""
        about = {"rng": self._rng.bit_generator.state, "agent_steps": self._agent_steps, "due": self._updates_due}
        replay = {f"replay.{name}": rows for name, rows in self._replay.state().items()}
        return about, replay | {f"learner.{name}": np.asarray(x) for name, x in pack(self._state).items()}

    def restore(self, state: State) -> None:
        """Go on."""
        about, arrays = state
        replay, learner = (
            {name.removeprefix(part): x for name, x in arrays.items() if name.startswith(part)}
            for part in ("replay.", "learner.")
        )
        self._rng.bit_generator.state = about["rng"]
        self._agent_steps, self._updates_due = about["agent_steps"], about["due"]
        self._replay.restore(replay)
        self._state = unpack({name: jnp.asarray(x) for name, x in learner.items()}, self._state)


def main(args: Args) -> None:
    """Collect the episodes; see the module.

    Raises:
        UserError: in one line, for an unknown task, a setting out of range, or a folder that is not to be replaced.
        FloatingPointError: if learning diverged.
    """
    if args.episodes < 1:
        raise UserError(f"--episodes is {args.episodes}: give a whole number, 1 or more")
    if not (args.time_constant > 0 and args.scale > 0):
        raise UserError(f"--time-constant {args.time_constant}, --scale {args.scale}: give numbers above 0")
    env = envs.make_env(args.task, seed=args.seed, action_repeat=args.action_repeat, time_limit=args.time_limit)
    unseen = envs.VALIDATION if envs.family_of(args.task) is not None else envs.HELD_OUT
    if envs.is_hidden(args.task) and args.seed >= unseen:
        raise UserError(f"--seed {args.seed}: tasks of seeds from {unseen} on are held out for evaluation")
    out = user_path(args.out) if args.out else Path("datasets") / env.domain / args.policy
    config = replace(args.learner, reward="rnd" if args.policy == "rnd" else "task")
    collector = _make_collector(args, config, env)
    tasks = envs.tasks(env.domain) if env.domain in _RECORDS_EVERY_TASK else (args.task,)
    relabel = Relabeler(tasks) if len(tasks) > 1 else None
    about = _describe(args, tasks, _settings(args, config)) | {"action_bounds": env.action_bounds}
    fixed = {name: value for name, value in about.items() if name != "episodes"}
    with unfinished_folder(out, COLLECT, fixed, args.overwrite) as kept:
        state = kept.load()
        if state is not None:
            collector.restore(state)
        for _ in kept.returns:
            env.reset()  # which draws as it drew before
        _collect(args, env, collector, relabel, kept, out)
        kept.close(COLLECT, about | {"steps": kept.steps, "returns": kept.returns})
    last = kept.returns[-10:]
    mean = f"mean return of the last {len(last)}: {np.mean(last):.1f}"
    print(f"{out}: {len(kept.returns)} episodes, {kept.steps} steps; {mean}")


def _collect(
    args: Args, env: DMControlEnv, collector: Collector, relabel: Relabeler | None, kept: Unfinished, out: Path
) -> None:
    """Collect the episodes that are missing. Raises `Stopped`, between two of them, where that is asked for."""
    begun = len(kept.returns)
    with _progress(args, begun) as report, finishing("this episode") as asked:
        for index in range(begun, args.episodes):
            episode, agent_steps = record_episode(env, collector.act)
            recorded = replace(episode, reward=relabel(episode)) if relabel else episode
            write_episode(kept.folder / BUFFER, index, recorded)
            collector.learn(agent_steps)
            signal = asked()
            kept.add(float(episode.reward.sum(dtype=np.float64)), episode.length, collector.state, now=signal > 0)
            report(kept.returns[-1])
            if signal:
                done = f"{index + 1} of {args.episodes} episodes are kept in {kept.folder}"
                raise Stopped(signal, f"{out}: {done}; give the same command to go on")


def _describe(args: Args, tasks: tuple[str, ...], learner: Any) -> dict[str, Any]:
    """The content of collect.json, but for what was collected; `tasks`: of the recorded reward columns, in order."""
    return {
        "task": args.task,
        "tasks": tasks,
        "domain": envs.split_task(args.task)[0],
        "collector": args.policy,
        "seed": args.seed,
        "episodes": args.episodes,
        "mujoco": importlib.metadata.version("mujoco"),
        "dm_control": importlib.metadata.version("dm_control"),
        "action_repeat": args.action_repeat,
        "time_limit": args.time_limit,
        "hyper_parameters": learner,
    }


def _settings(args: Args, config: Any) -> dict[str, Any] | None:
    """The settings of the policy; None: it has none."""
    if args.policy == "correlated":
        return {"time_constant": args.time_constant, "scale": args.scale}
    return None if args.policy == "random" else asdict(config)


def _make_collector(args: Args, config: Any, env: DMControlEnv) -> Collector:
    action_size = math.prod(env.action_space.shape or ())
    # A hidden parameter is the first draw of the same seed's generator: actions from that one would reveal it.
    noise = [args.seed, 2] if envs.is_hidden(args.task) else args.seed
    if args.policy == "random":
        return RandomCollector(action_size, noise)
    if args.policy == "correlated":
        correlation = math.exp(-env.control_timestep * args.action_repeat / args.time_constant)
        return CorrelatedCollector(action_size, correlation, args.scale, noise)
    return TD3Collector(config, math.prod(env.observation_space.shape or ()), action_size, args.seed, noise)


@contextmanager
def _progress(args: Args, begun: int) -> Iterator[Any]:
    """A bar with the time left; yields the function that takes the return of each episode."""
    columns = (
        TextColumn("collecting {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("return {task.fields[episode_return]}"),
    )
    with progress_bar(*columns, transient=True) as progress:
        bar = progress.add_task(
            f"{args.task} ({args.policy})", total=args.episodes, completed=begun, episode_return="-"
        )
        yield lambda value: progress.update(bar, advance=1, episode_return=f"{value:.0f}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
