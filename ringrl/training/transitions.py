"""Training on single transitions: the loop of agents that see no context (`ringrl.agent.Learner`)."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from ringrl.agent import Learner, display_name
from ringrl.collect.replay import Replay
from ringrl.config import AgentConfig, RunConfig
from ringrl.errors import UserError
from ringrl.run import RunDirectory
from ringrl.sampling.chains import by_agent_step, rewards_by_agent_step
from ringrl.store.episode_store import StepSpan, open_store
from ringrl.training.checkpoint import Checkpoints, describe, next_batch
from ringrl.training.mesh import make_mesh
from ringrl.training.tracker import Tracker
from ringrl.training.training_data import EpisodeData

EPISODES_AT_ONCE = 16
MOST_STEPS_A_CALL = 100  # gradient steps fused into one compiled call: more gain nothing, and take memory


def train_offline(config: RunConfig, learner: Learner, run: Path) -> None:
    """Train `learner` on all transitions of the store, as `ringrl.training.loop.train` does the other agents.

    `training.steps` are gradient steps, each on a minibatch that (seed, step) determine, so that a resumed run goes on
    as if it had never stopped. A logged line holds the means over the steps of one compiled call; in it, a transition
    counts as a token.

    Raises UserError where the configuration asks for what such an agent does not have, or when the data are no longer
    those that the run began with; and FloatingPointError, naming the step, when learning diverges.
    """
    _refuse_unused(config)
    t, source, directory = config.training, EpisodeData(config, None), RunDirectory(run)
    source.prepare(run)
    replay = fill_replay(config, learner, source)
    state = learner.init(config.agent, source.sizes["observation"], source.sizes["action"], config.seed)
    with Checkpoints(run, t.keep_checkpoints, t.keep_best) as checkpoints:
        start = 0
        if checkpoints.latest_step is not None:
            state, about = restore(checkpoints, state)
            start = next_batch(about, config, run)
        name = display_name(learner)
        directory.write(config, source.card, source.normalizer, display_name=name, across_trials=False)
        with Tracker(run, t.steps, start, directory.label()) as metrics:
            since, done = time.perf_counter(), start
            for first, last in calls(start, t.steps, t.log_every, t.checkpoint_every):
                batches = replay.sample_steps(first, last, config.seed)
                state, values = learner.update(config.agent, state, batches)
                for _ in range(first, last):
                    metrics.advance()
                log, save = (last % every == 0 or last == t.steps for every in (t.log_every, t.checkpoint_every))
                if log or save:
                    numbers = _finite(last, values)
                if log:
                    size = batches.reward.shape[-1]
                    rate = (last - done) * size / (time.perf_counter() - since)
                    metrics.log(last, numbers | {"tokens": float(last * size), "tokens_per_s": rate})
                    since, done = time.perf_counter(), last
                if save:
                    about = describe(last, config.seed, make_mesh(config.mesh))
                    checkpoints.save(last, pack(state), about, numbers["loss"])


def fill_replay(config: RunConfig, learner: Learner, source: EpisodeData) -> Replay:
    """All decisions of the store's episodes, observations normalised, rewards as they are.

    The store gives no observation after an episode's last action. Where the episode really ended there (discount 0)
    none is needed; where it was cut off, by a time limit, the last decision is left out.

    Raises UserError where nothing is left.
    """
    data, store = config.data, open_store(config.data.store, memory_limit=0)
    capacity = int((-(-store.lengths // data.action_repeat)).sum())
    replay = learner.make_replay(config.agent, capacity, *source.sizes.values())
    for begin in range(0, store.episodes, EPISODES_AT_ONCE):
        episodes = range(begin, min(begin + EPISODES_AT_ONCE, store.episodes))
        for steps in store.read_many([(e, 0, int(store.lengths[e])) for e in episodes], data.task):
            observation, action, reward, discount = _decisions(steps, data.action_repeat)
            known = len(action) if discount[-1] == 0 else len(action) - 1
            observation = source.scales.normalize_observation(np.concatenate([observation, observation[-1:]]))
            replay.add_episode(observation[: known + 1], action[:known], reward[:known], discount[:known])
    if not replay.size:
        raise UserError(f"{data.store}: no episode has two decisions, so there are no transitions to learn from")
    return replay


def _decisions(
    steps: StepSpan, repeat: int
) -> tuple[
    Float32[np.ndarray, "n observation"],
    Float32[np.ndarray, "n action"],
    Float32[np.ndarray, " n"],
    Float32[np.ndarray, " n"],
]:
    """An episode's observations, actions, sums of rewards and products of discounts, decision by decision."""
    observation, action = by_agent_step(steps, repeat)
    reward, _ = rewards_by_agent_step(steps, repeat)
    discount = np.multiply.reduceat(steps.discount, np.arange(0, len(steps.discount), repeat))
    return observation, action, reward.astype(np.float32), discount


def calls(start: int, steps: int, *boundaries: int) -> Iterator[tuple[int, int]]:
    """The compiled calls' ranges of gradient steps, `start` to `steps`; one ends at every multiple of a boundary.

    All are of one length, but for the last and for the first of a run that goes on in between.
    """
    common = math.gcd(*boundaries)
    length = max(n for n in range(1, MOST_STEPS_A_CALL + 1) if common % n == 0)
    while start < steps:
        stop = min(start - start % length + length, steps)
        yield start, stop
        start = stop


def pack(state: Any) -> dict[str, jax.Array]:
    """A state's arrays by their path in it, random keys as plain numbers: what a checkpoint keeps."""
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): _plain(leaf) for path, leaf in found}


def restore(checkpoints: Checkpoints, like: Any, which: str = "latest") -> tuple[Any, dict]:
    """The state that `which` names, as `pack` packed one of the structure of `like`, and what was said about it."""
    packed, about = checkpoints.restore(pack(like), which)
    leaves, structure = jax.tree.flatten(like)
    plain = [packed[name] for name in pack(like)]
    back = [jax.random.wrap_key_data(x) if _is_key(leaf) else x for x, leaf in zip(plain, leaves, strict=True)]
    return jax.tree.unflatten(structure, back), about


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _finite(step: int, values: dict[str, jax.Array]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: lower the agent's step sizes, or check the data"
            )
    return numbers


def _refuse_unused(config: RunConfig) -> None:
    """Settings that would change nothing must not be taken for ones that do."""
    kept = ("steps", "log_every", "checkpoint_every", "keep_checkpoints", "keep_best")
    ours = {"model": config.model, "mesh": config.mesh, "optimizer": config.optimizer, "training": config.training}
    changed = [
        f"{name}.{field}"
        for name, section in ours.items()
        for field, value in section
        if (name, field) not in {("training", each) for each in kept} and value != getattr(type(section)(), field)
    ]
    default = AgentConfig(name=config.agent.name)
    changed += [f"agent.{field}" for field, value in default if getattr(config.agent, field) != value]
    if changed:
        raise UserError(
            f"{config.agent.name} sees single transitions and has networks and optimisers of its own, in which "
            f"{', '.join(changed)} mean nothing: leave them out, and set the agent's own hyper-parameters"
        )
    if jax.process_count() > 1:
        raise UserError(f"{config.agent.name} is trained by one process, and here are {jax.process_count()}")
