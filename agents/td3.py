"""TD3 (Fujimoto, van Hoof, Meger 2018): an off-policy learner with twin critics and a delayed actor.

- data: single transitions, all of the store's (ExoRL found it the best offline learner: Yarats et al. 2022, section 4)
- sees: one normalised observation; no context
- loss: the critics' squared error to a clipped double-Q target; the actor climbs the first critic
- acts: the actor's action, without noise, every trial alike

Offline it is a baseline: `ringrl train` with `agent: {name: td3}`, where `training.steps` are gradient steps. Online it
is `data/collect.py`'s source learner, on the task's reward or on the RND reward alone, as ExoRL's `rnd` data were.
The paper is arXiv:1802.09477. `bc_weight` adds behaviour cloning to the actor (TD3+BC, Fujimoto & Gu 2021).
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, Key
from pydantic import Field

from ringrl.agent import AgentDescription
from ringrl.collect.networks import MLP, Critics, descend, optimizer_state, polyak
from ringrl.collect.replay import Replay, Transitions
from ringrl.collect.rnd import RNDState, init_rnd, rnd_reward
from ringrl.config import AgentConfig
from ringrl.transition_agent import TransitionAgent

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class LearnerConfig:
    """How it learns."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 128)  # widths of the actor's and critics' layers
    actor_lr: Positive = 1e-3  # Adam's step size for the actor
    critic_lr: Positive = 1e-3  # Adam's step size for both critics
    batch: Count = 256  # transitions in a minibatch
    gamma: Share = 0.99  # discount factor of one agent step
    n_step: Count = 1  # rewards summed before the bootstrap; 1 is TD3's own target
    tau: Share = 0.01  # share of the online weights that enters the target weights at every actor update
    policy_delay: Count = 2  # critic updates for one update of the actor and the targets (section 5.2)
    target_noise: Annotated[float, Field(ge=0)] = 0.2  # standard deviation of the target action's noise (section 5.3)
    target_clip: Annotated[float, Field(ge=0)] = 0.5  # and its largest magnitude
    # weight of cloning (the squared distance to the data's actions) beside a mean |Q| of 1; 0: plain TD3; TD3+BC: 0.4
    bc_weight: Annotated[float, Field(ge=0)] = 0.0


class Config(AgentConfig, LearnerConfig):  # pyright: ignore[reportGeneralTypeIssues]  # it is frozen, as AgentConfig is
    """Hyper-parameters of `ringrl train`."""


@dataclass(frozen=True)
class CollectorConfig(LearnerConfig):
    """And how it explores while `data/collect.py` collects."""

    warmup: int = 1000  # agent steps whose actions are uniformly random, before the actor takes over
    noise_start: float = 1.0  # standard deviation of the exploration noise at the first agent step
    noise_end: float = 0.1  # and after `noise_decisions`
    noise_decisions: int = 8_000  # agent steps over which the noise falls, linearly
    update_to_data: float = 1.0  # gradient steps per agent step
    updates_per_call: int = 50  # gradient steps fused into one compiled call; changes speed, not results
    capacity: int = 1_000_000  # transitions that the replay keeps; the oldest leave first
    reward: Literal["task", "rnd"] = "task"  # learn from the task's reward, or from the RND reward alone
    rnd_features: int = 64  # width of the random features that the predictor has to guess
    rnd_lr: float = 1e-3  # Adam's step size for the predictor
    rnd_clip: float = 5.0  # normalised observations are clipped to +- this before the features (Burda et al., 2.4)


class State(NamedTuple):
    """The learner: a pytree, so that it can be saved, copied and passed through `jax.jit` as it is."""

    actor: MLP
    critics: Critics
    target_actor: MLP
    target_critics: Critics
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    rnd: RNDState | None  # None unless `reward == "rnd"`
    step: Int32[Array, ""]  # gradient steps taken
    key: Key[Array, ""]  # of the target noise


@partial(jax.jit, static_argnames=("config", "observation_size", "action_size"))
def init(config: LearnerConfig, observation_size: int, action_size: int, seed: int) -> State:
    """A fresh learner; the targets start as copies of the networks, as in the paper's Algorithm 1."""
    rngs = nnx.Rngs(jax.random.key(seed))
    actor = MLP((observation_size, *config.hidden, action_size), rngs)
    critics = Critics(observation_size, action_size, config.hidden, rngs)
    rnd = None
    if isinstance(config, CollectorConfig) and config.reward == "rnd":
        rnd = init_rnd(observation_size, config.hidden, config.rnd_features, rngs)
    return State(
        actor=actor,
        critics=critics,
        target_actor=actor,
        target_critics=critics,
        actor_optimizer=optimizer_state(actor),
        critic_optimizer=optimizer_state(critics),
        rnd=rnd,
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(seed),
    )


def make_replay(config: LearnerConfig, capacity: int, observation_size: int, action_size: int) -> Replay:
    """An empty replay of `capacity` transitions, which gives minibatches as `update` takes them."""
    options = {"batch": config.batch, "gamma": config.gamma, "n_step": config.n_step}
    return Replay(capacity, observation_size, action_size, **options)


@jax.jit
def policy(actor: MLP, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
    """The deterministic policy, tanh(actor(observation)), in [-1, 1]."""
    return jnp.tanh(actor(observation))


def act(state: State, observation: Float32[np.ndarray, "*batch observation"]) -> Float32[np.ndarray, "*batch action"]:
    """The actions of the trained policy, for normalised observations."""
    return np.asarray(policy(state.actor, observation))


def explore(
    config: CollectorConfig, state: State, observation: np.ndarray, agent_step: int, rng: np.random.Generator
) -> Float32[np.ndarray, " action"]:
    """The action while collecting: uniform at first, then the policy's with Gaussian noise that falls linearly.

    `observation` is float32 [O]; `agent_step` is the number of agent steps before this one, over all episodes.
    """
    action = act(state, observation)
    if agent_step < config.warmup:
        return rng.uniform(-1.0, 1.0, action.shape).astype(np.float32)
    share = min(agent_step / config.noise_decisions, 1.0)
    scale = config.noise_start + share * (config.noise_end - config.noise_start)
    noise = scale * rng.standard_normal(action.shape)
    return np.clip(action + noise, -1.0, 1.0).astype(np.float32)


@partial(jax.jit, static_argnames="config")
def update(config: LearnerConfig, state: State, batches: Transitions) -> tuple[State, dict[str, Float[Array, ""]]]:
    """A gradient step for each minibatch of `batches`, fused into one compiled loop.

    Args:
        config: the hyper-parameters.
        state: the learner.
        batches: [updates, batch, ...]; each minibatch is used once.

    Returns:
        The new state, and the means over the steps of `loss` (the critics'), `grad_norm` (its gradient's), `q` (Q1 of
        the data's actions) and `reward`.
    """
    state, metrics = jax.lax.scan(partial(_step, config), state, batches)
    return state, jax.tree.map(jnp.mean, metrics)


def _step(config: LearnerConfig, state: State, batch: Transitions) -> tuple[State, dict[str, Float[Array, ""]]]:
    """One critic update; every `policy_delay` of them, one update of the actor and the targets."""
    if isinstance(config, CollectorConfig) and state.rnd is not None:
        seen = batch.next_observation
        rnd, reward = rnd_reward(state.rnd, seen, lr=config.rnd_lr, clip=config.rnd_clip)
        state, batch = state._replace(rnd=rnd), batch._replace(reward=reward)
    key, noise_key = jax.random.split(state.key)
    target = td_target(config, state, batch, noise_key)

    def critic_loss(critics: Critics) -> tuple[Float[Array, ""], Float[Array, ""]]:
        q1, q2 = critics(batch.observation, batch.action)
        return jnp.mean(jnp.square(q1 - target) + jnp.square(q2 - target)), jnp.mean(q1)

    (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critics)
    critics, optimizer = descend(config.critic_lr, gradient, state.critic_optimizer, state.critics)
    state = state._replace(critics=critics, critic_optimizer=optimizer, step=state.step + 1, key=key)
    due = state.step % config.policy_delay == 0
    state = jax.lax.cond(due, partial(_improve, config, batch), lambda unchanged: unchanged, state)
    return state, {"loss": loss, "grad_norm": optax.tree.norm(gradient), "q": q, "reward": jnp.mean(batch.reward)}


def td_target(config: LearnerConfig, state: State, batch: Transitions, key: Key[Array, ""]) -> Float[Array, " batch"]:
    """Clipped double Q-learning with target policy smoothing (the paper's equations 10 and 14).

    y = r + discount * min_i Q'_i(s', clip(pi'(s') + clip(noise, -c, c), -1, 1))
    """
    smooth = config.target_noise * jax.random.normal(key, batch.action.shape)
    smooth = jnp.clip(smooth, -config.target_clip, config.target_clip)
    action = jnp.clip(policy(state.target_actor, batch.next_observation) + smooth, -1.0, 1.0)
    q1, q2 = state.target_critics(batch.next_observation, action)
    return batch.reward + batch.discount * jnp.minimum(q1, q2)


def _improve(config: LearnerConfig, batch: Transitions, state: State) -> State:
    """The deterministic policy gradient through Q1, then Polyak averaging of all three targets."""

    def actor_loss(actor: MLP) -> Float[Array, ""]:
        action = policy(actor, batch.observation)
        q = state.critics(batch.observation, action)[0]
        if config.bc_weight == 0:
            return -jnp.mean(q)
        scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
        return config.bc_weight * jnp.mean(jnp.square(action - batch.action)) - jnp.mean(q) / scale

    gradient = jax.grad(actor_loss)(state.actor)
    actor, optimizer = descend(config.actor_lr, gradient, state.actor_optimizer, state.actor)
    return state._replace(
        actor=actor,
        actor_optimizer=optimizer,
        target_actor=polyak(config.tau, actor, state.target_actor),
        target_critics=polyak(config.tau, state.critics, state.target_critics),
    )


class Agent(TransitionAgent[Config, State]):
    """TD3 as `ringrl train` sees it: the functions above under one setting of the hyper-parameters."""

    description = AgentDescription("TD3", across_trials=False)

    def init(self, observation_size: int, action_size: int, seed: int) -> State:
        """See `init`."""
        return init(self.config, observation_size, action_size, seed)

    def make_replay(self, capacity: int, observation_size: int, action_size: int) -> Replay:
        """See `make_replay`."""
        return make_replay(self.config, capacity, observation_size, action_size)

    def update(self, state: State, batches: Transitions) -> tuple[State, dict[str, Float[Array, ""]]]:
        """See `update`."""
        return update(self.config, state, batches)

    def act(
        self, state: State, observation: Float32[np.ndarray, "*batch observation"]
    ) -> Float32[np.ndarray, "*batch action"]:
        """See `act`."""
        return act(state, observation)
