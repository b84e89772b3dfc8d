"""Context plans -> chains: reads the pieces of a `ContextPlan` from a store and joins them along time.

A store counts environment steps, a chain agent steps. With an action repeat of k an agent step is k environment steps.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from ringrl.batch import Chain, ContextPlan
from ringrl.episode import StepSpan
from ringrl.errors import UserError
from ringrl.sampling.relabelled import RelabelledEpisodes
from ringrl.store.episode_store import Store


@runtime_checkable
class EpisodeReader(Protocol):
    """Episodes by index: what chains, normalizers and loaders need of a `ringrl.store.episode_store.Store`."""

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Environment steps of every episode."""
        ...

    def returns(self, task: str) -> Float64[np.ndarray, " episodes"]:
        """Undiscounted return of every episode under a task."""
        ...

    def read_many(self, spans: Sequence[tuple[int, int, int]], task: str) -> Sequence[StepSpan]:
        """Environment steps `start:stop` of each (episode, start, stop), with the task's rewards, read concurrently."""
        ...


def build_chain(
    store: EpisodeReader, plan: ContextPlan, task: str, *, action_repeat: int = 1, demonstrator: bool = False
) -> Chain:
    """Reads a plan's pieces, concurrently, and joins them into one chain of agent steps.

    With R the target of an episode and r_i its rewards, the return-to-go of step t is R_t = R - sum_{i < t} r_i, which
    counts all earlier rewards of the episode, also those before the piece (Chen et al. 2021, section 3). With a horizon
    it is the mean reward of that many agent steps (`reward_rates`), times the agent steps of the store's longest
    episode.

    Args:
        store: where the episodes are.
        plan: what to read; starts, and stops inside an episode, must be multiples of `action_repeat`.
        task: whose rewards.
        action_repeat: environment steps in an agent step: the observation of the first, the mean of their actions (the
            action itself where it was repeated) and the sum of their rewards. An episode's last may have fewer.
        demonstrator: whether the chain shall have a demonstrator's actions: what it would have done before the first
            environment step of each agent step.

    Returns:
        The chain. `completion` is 1 at the last step of a completed episode if the piece reaches it.

    Raises:
        UserError: a piece that does not start at an agent step; episodes without a demonstrator, if it is asked for.
    """
    if (plan.start % action_repeat).any():
        raise UserError(f"starts {plan.start.tolist()} must be multiples of action_repeat={action_repeat}")
    length, count = store.lengths[plan.episode], agent_steps(plan, action_repeat)
    # With a horizon, so much more is read than is in the chain, and a return-to-go does not depend on the piece's end.
    ahead = 0 if plan.horizon is None else plan.horizon * action_repeat
    stop = np.minimum(plan.stop + ahead, length)
    spans = zip(plan.episode.tolist(), plan.start.tolist(), stop.tolist(), strict=True)
    steps = _read(store, list(spans), plan, task, demonstrator)
    taken = [[x[:n] for x in by_agent_step(each, action_repeat)] for each, n in zip(steps, count, strict=True)]
    rewards = [rewards_by_agent_step(each, action_repeat) for each in steps]
    completion = np.zeros(int(count.sum()), np.float32)
    completion[np.cumsum(count) - 1] = plan.completed & (plan.stop == length)
    if plan.horizon is None:
        to_go = np.repeat(plan.target, count) - np.concatenate([earned for _, earned in rewards])
    else:
        longest = -(-int(store.lengths.max()) // action_repeat)
        means = [reward_rates(*r, plan.horizon)[:n] for r, n in zip(rewards, count, strict=True)]
        to_go = longest * np.concatenate(means)
    trial = np.repeat(np.arange(len(count), dtype=np.int32), count)
    number = np.arange(len(trial)) - np.repeat(np.cumsum(count) - count - plan.start // action_repeat, count)
    return Chain(
        observation=np.concatenate([observation for observation, _ in taken]),
        action=np.concatenate([action for _, action in taken]),
        reward=np.concatenate([paid[:n] for (paid, _), n in zip(rewards, count, strict=True)]).astype(np.float32),
        return_to_go=to_go.astype(np.float32),
        completion=completion,
        step=number.astype(np.int32),
        trial=trial,
        demonstrator=np.concatenate([_shown(each, action_repeat)[:n] for each, n in zip(steps, count, strict=True)])
        if demonstrator
        else None,
    )


def _shown(steps: StepSpan, repeat: int) -> Float32[np.ndarray, "n action"]:
    assert steps.demonstrator is not None, "it was asked for"
    return steps.demonstrator[::repeat]


def _read(
    store: EpisodeReader, spans: list[tuple[int, int, int]], plan: ContextPlan, task: str, demonstrator: bool
) -> Sequence[StepSpan]:
    if demonstrator:
        if not isinstance(store, Store):
            raise UserError("a demonstrator's actions are of a store's own task, and these rewards are drawn members'")
        return store.read_many(spans, task, demonstrator=True)
    if plan.parameter is None:
        return store.read_many(spans, task)
    if not isinstance(store, RelabelledEpisodes):
        raise UserError(f"these episodes have no features of {task}, so its members' rewards are not known")
    return store.read_members(spans, plan.parameter)


def reward_rates(
    paid: Float64[np.ndarray, " n"], earned: Float64[np.ndarray, " n"], horizon: int
) -> Float64[np.ndarray, " n"]:
    """Mean reward of each agent step and those after it: rate_t = (r_t + ... + r_{t+m-1}) / m, m = min(horizon, n - t).

    A return over a short horizon depends more on the action and less on the rest of the episode (upside-down
    reinforcement learning conditions on a horizon: Srivastava et al. 2019, section 2). Times the agent steps of an
    episode it is the return of an episode with this mean reward throughout, and so in the unit of returns.

    Args:
        paid: r_t, the reward of every agent step.
        earned: the sum of the episode's rewards before it (`rewards_by_agent_step`).
        horizon: 1 or more.
    """
    total = np.append(earned, earned[-1] + paid[-1])
    here = np.arange(len(paid))
    end = np.minimum(here + horizon, len(paid))
    return (total[end] - total[here]) / (end - here)


def agent_steps(plan: ContextPlan, action_repeat: int = 1) -> Int64[np.ndarray, " pieces"]:
    """The number of agent steps in every piece of a plan, known before anything is read."""
    return -((plan.start - plan.stop) // action_repeat)


def by_agent_step(
    steps: StepSpan, repeat: int
) -> tuple[Float32[np.ndarray, "n observation"], Float32[np.ndarray, "n action"]]:
    """Observation and action of every agent step: the first observation and the mean action of its `repeat` steps."""
    if repeat == 1:
        return steps.observation[:-1], steps.action
    first = np.arange(0, len(steps.reward), repeat)
    size = np.diff(first, append=len(steps.reward))
    # Summed in float64, so that the mean of k equal float32 actions is that action to the bit.
    action = np.add.reduceat(steps.action, first, axis=0, dtype=np.float64) / size[:, None]
    return steps.observation[first], action.astype(np.float32)


def rewards_by_agent_step(steps: StepSpan, repeat: int) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """The reward of every agent step, and the sum of its episode's rewards before it.

    Sums begin at the episode's first step, so that they are the same to the bit for any start of a piece.
    """
    paid = np.concatenate([steps.earlier, steps.reward], dtype=np.float64)
    if repeat > 1:
        paid = np.add.reduceat(paid, np.arange(0, len(paid), repeat))
    earned = np.cumsum(paid) - paid
    first = len(steps.earlier) // repeat
    return paid[first:], earned[first:]
