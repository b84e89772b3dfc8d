"""How an agent learns from single transitions: minibatches of a replay, and many gradient steps a compiled call."""

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int64

from ringrl.collect.member_replay import MemberReplay
from ringrl.collect.replay import Replay, Transitions
from ringrl.config import AgentConfig, RunConfig
from ringrl.episode import StepSpan
from ringrl.errors import UserError
from ringrl.sampling.chains import by_agent_step, rewards_by_agent_step
from ringrl.sampling.relabelled import RelabelledEpisodes
from ringrl.training.mesh import make_mesh
from ringrl.training.soundness import find_unsound, largest_number, magnitudes_of_state
from ringrl.training.training_data import EpisodeData, open_episodes, refuse_held_out

EPISODES_AT_ONCE = 16
_measure = jax.jit(magnitudes_of_state)
MOST_STEPS_A_CALL = 100  # gradient steps fused into one compiled call: more gain no speed, and take memory


@runtime_checkable
class TransitionLearner(Protocol):
    """What training needs of an agent that learns from transitions: networks and optimisers of its own, in a pytree.

    Its methods are those of `ringrl.transition_agent.TransitionAgent`, written again because that class builds on this
    module, which therefore cannot import it.
    """

    def init(self, observation_size: int, action_size: int, seed: int) -> Any:
        """The state at step 0."""
        ...

    def make_replay(self, capacity: int, observation_size: int, action_size: int) -> Replay:
        """An empty replay of `capacity` transitions, which gives minibatches as `update` takes them."""
        ...

    def update(self, state: Any, batches: Transitions) -> tuple[Any, dict[str, jax.Array]]:
        """A gradient step for each minibatch: the new state, and float32 scalars, `loss` and `grad_norm` among them."""
        ...


class TransitionTrainer:
    """A `ringrl.agent.Trainer`: gradient steps on minibatches of all transitions of a store.

    `training.steps` are gradient steps, each on a minibatch that (seed, step) determine, so that a resumed run
    continues as if it had never stopped. A compiled call takes up to `MOST_STEPS_A_CALL` of them. Its metrics are
    means over its steps, and in them a transition counts as a token. A checkpoint keeps the state's arrays by name
    (`pack`).

    Attributes:
        data: what it is trained on.
        mesh: one device.
        step_sizes: the settings to lower where learning diverges.
    """

    step_sizes = "the agent's step sizes"

    def __init__(self, config: RunConfig, learner: TransitionLearner):
        """Open the store. Raises UserError where `config` asks for what such an agent does not have."""
        _refuse_unused(config)
        self.data, self.mesh = EpisodeData(config), make_mesh(config.mesh)
        self._config, self._learner = config, learner
        self._size = 0  # of a minibatch
        self._replay: Replay | MemberReplay | None = None
        self._calls_before: deque[tuple[int, int, Any]] = deque(maxlen=2)  # the last ones' steps, and states before
        self._since, self._done = 0.0, 0  # when `rates` was called last, and the step that was

    def init(self) -> Any:
        """The learner's state at step 0."""
        return self._learner.init(self.data.sizes["observation"], self.data.sizes["action"], self._config.seed)

    def pack(self, state: Any) -> dict[str, jax.Array]:
        """See `pack`."""
        return pack(state)

    def unpack(self, packed: dict[str, jax.Array], like: Any) -> Any:
        """See `unpack`."""
        return unpack(packed, like)

    def updates(self, state: Any, start: int) -> Iterator[tuple[int, Any, dict[str, jax.Array]]]:
        """See `Trainer`; fills the replay."""
        self._replay = fill_replay(self._config, self._learner, self.data)
        return self._calls(self._replay, state, start)

    def _calls(
        self, replay: Replay | MemberReplay, state: Any, start: int
    ) -> Iterator[tuple[int, Any, dict[str, jax.Array]]]:
        t = self._config.training
        self._since, self._done = time.perf_counter(), start
        for first, last in calls(start, t.steps, t.log_every, t.checkpoint_every):
            batches = replay.sample_steps(first, last, self._config.seed)
            self._size = batches.reward.shape[-1]
            self._calls_before.append((first, last, state))
            state, values = self._learner.update(state, batches)
            yield last, state, values | _measure(state)

    def explain(self, step: int, found: str) -> tuple[str, str]:
        """See `Trainer`. The call's steps are done again, each alone, to find the one at fault."""
        replay, seed = self._replay, self._config.seed
        assert replay is not None, "`updates` comes first"
        first, state = next((first, state) for first, last, state in self._calls_before if last == step)
        # Where the learner gives the state before away, or one step alone is rounded otherwise, the call is named.
        steps, what = range(first, step), f"{found} in one of the steps {first + 1} to {step}"
        for index, unsound in self._each_alone(replay, steps, state):
            if unsound is not None:
                steps, what = range(index, index + 1), f"{unsound} at step {index + 1}"
                break
        rows = np.concatenate([replay.drawn(each, seed) for each in steps])
        batches = replay.sample_steps(steps.start, steps.stop, seed)
        arrays = {name: np.asarray(array) for name, array in batches._asdict().items()}
        return what, f"{self.data.name_episodes(self._episodes_of(rows))}, {largest_number(arrays)}"

    def _each_alone(self, replay: Replay | MemberReplay, steps: range, state: Any) -> Iterator[tuple[int, str | None]]:
        """Gradient steps from `state` on, and what is unsound after each; none where the state is no longer there."""
        if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            return
        for index in steps:
            state, values = self._learner.update(state, replay.sample_steps(index, index + 1, self._config.seed))
            numbers = jax.device_get(values | _measure(state))
            yield index, find_unsound({name: float(value) for name, value in numbers.items()})

    def _episodes_of(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """The episode of each row of the replay, whose rows are the store's agent steps in order."""
        ends = np.cumsum(-(-self.data.episodes.lengths // self._config.data.action_repeat))
        return np.searchsorted(ends, rows, side="right")

    def validate(self, state: Any) -> dict[str, float]:
        """Nothing: the losses of critics on held-out transitions say little of the policy."""
        return {}

    def rates(self, step: int) -> dict[str, float]:
        """Transitions so far, and transitions per second since the last call."""
        now = time.perf_counter()
        rate = (step - self._done) * self._size / (now - self._since)
        self._since, self._done = now, step
        return {"tokens": float(step * self._size), "tokens_per_s": rate}


def fill_replay(config: RunConfig, learner: TransitionLearner, data: EpisodeData) -> Replay | MemberReplay:
    """All agent steps of the store's episodes, observations normalised, rewards as they are.

    Where observations show the member of a family that pays, a member is drawn for every transition of a minibatch.
    """
    c, store = config.data, open_episodes(config.data, memory_limit=0)
    capacity = int((-(-store.lengths // c.action_repeat)).sum())
    replay = learner.make_replay(capacity, *data.sizes.values())
    if isinstance(store, RelabelledEpisodes) and store.visible:
        replay = MemberReplay(replay, store, data.scales, c.action_repeat, scale_members=c.scale_members)
    for begin in range(0, len(store.lengths), EPISODES_AT_ONCE):
        episodes = range(begin, min(begin + EPISODES_AT_ONCE, len(store.lengths)))
        for steps in store.read_many([(e, 0, int(store.lengths[e])) for e in episodes], c.task):
            observation, action, reward, discount = _agent_steps(steps, c.action_repeat)
            replay.add_episode(data.scales.normalize_observation(observation), action, reward, discount)
    return replay


def _agent_steps(
    steps: StepSpan, repeat: int
) -> tuple[
    Float32[np.ndarray, "n_and_one observation"],
    Float32[np.ndarray, "n action"],
    Float32[np.ndarray, " n"],
    Float32[np.ndarray, " n"],
]:
    """An episode's observations with the last, actions, sums of rewards and products of discounts, by agent step."""
    observation, action = by_agent_step(steps, repeat)
    observation = np.concatenate([observation, steps.observation[-1:]])
    reward, _ = rewards_by_agent_step(steps, repeat)
    discount = np.multiply.reduceat(steps.discount, np.arange(0, len(steps.discount), repeat))
    return observation, action, reward.astype(np.float32), discount


def calls(start: int, steps: int, *boundaries: int) -> Iterator[tuple[int, int]]:
    """The compiled calls' ranges of gradient steps, `start` to `steps`; one ends at every multiple of a boundary.

    All are of one length, but for the last and for the first of a run that continues in between.
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


def unpack(packed: dict[str, jax.Array], like: Any) -> Any:
    """The inverse of `pack`, for a state of the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    plain = [packed[name] for name in pack(like)]
    back = [jax.random.wrap_key_data(x) if _is_key(leaf) else x for x, leaf in zip(plain, leaves, strict=True)]
    return jax.tree.unflatten(structure, back)


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _refuse_unused(config: RunConfig) -> None:
    """Raise UserError where a setting that such an agent does not use is not at its default."""
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
    refuse_held_out(config, f"{config.agent.name} has no loss that would say how good it is on held-out episodes")
    if jax.process_count() > 1:
        raise UserError(f"{config.agent.name} is trained by one process, and here are {jax.process_count()}")
