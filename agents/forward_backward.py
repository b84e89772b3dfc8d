"""Forward-backward representation (Touati & Ollivier 2021): all reward functions' policies from reward-free data.

- data: single transitions, all of the store's; rewards are not looked at
- sees: one normalised observation, and a task vector z that is computed from the context
- loss: of F and B, the error of the successor measure's Bellman equation, and B's departure from orthonormality; the
  actor climbs F(s, a, z) . z
- acts: z is the mean of reward times B(next observation) over the context, scaled to the sphere of radius sqrt(d)

The density of the discounted visits to x after (s, a), then following policy pi_z, is modelled as F(s, a, z) . B(x); so
a reward r has the action values F(s, a, z) . z with z = E[r(x) B(x)], and no weight changes when the task does.
Papers: arXiv:2103.07945, and arXiv:2209.14935 (Touati, Rapin & Ollivier 2022), to whose appendix the settings refer.
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Float64, Int32, Key
from pydantic import Field

from ringrl.agent import AgentDescription, RolloutSpec
from ringrl.collect.networks import MLP, descend, optimizer_state, polyak
from ringrl.collect.replay import Replay, Transitions
from ringrl.config import AgentConfig
from ringrl.errors import UserError
from ringrl.policy import UNBOUNDED
from ringrl.rollout.task_vector_policy import TrainedTaskVectorPolicy
from ringrl.sampling.normalizer import Normalizer
from ringrl.transition_agent import ReplayAgent

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Config(AgentConfig):
    """Hyper-parameters; "2022" is the second paper's value, for the domains of dm_control."""

    dimension: Count = 50  # d, of F, B and z; 2022: 50, and 100 for the maze
    hidden: Annotated[int, Field(ge=2)] = 256  # width of the layers of F and of the actor; 2022: 1024
    backward_hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 256)  # of B's layers; 2022: (256, 256)
    # indices of the observation's numbers that B reads, where rewards are known to read no others; empty: all
    # (the first paper, section 3: B of a goal space phi(s))
    goal_space: tuple[Annotated[int, Field(ge=0)], ...] = ()
    lr: Positive = 5e-4  # Adam's step size for F and B; 2022: 1e-4, of 1,000,000 gradient steps
    actor_lr: Positive = 5e-4  # and for the actor; 2022: 1e-4
    batch: Annotated[int, Field(ge=2)] = 256  # transitions in a minibatch; 2022: 1024
    gamma: Share = 0.98  # discount factor of one agent step; 2022: 0.98, and 0.99 for the maze
    tau: Share = 0.01  # share of the online weights that enters the target weights at every step; 2022: 0.01
    orthonormality: NotNegative = 1.0  # weight of the loss that makes E[B B^T] the identity; 2022: 1
    # share of the task vectors in a minibatch that are B of one of its observations; the rest are uniform on the
    # sphere; 2022: 0.5
    data_share: Share = 0.5
    target_noise: NotNegative = 0.2  # standard deviation of the target action's noise; 2022: 0.2
    target_clip: NotNegative = 0.3  # and its largest magnitude; 2022: 0.3
    # weight of cloning (the squared distance to the data's actions) beside a mean |Q| of 1, as TD3+BC's; 2022: none
    bc_weight: NotNegative = 0.0


class Conditioned(nnx.Module):
    """An MLP of the observation, the task vector and perhaps an action, whose two inputs are embedded apart.

    The observation's few numbers, with the action, would be lost among the d of z (2022, appendix: "preprocessing").
    """

    def __init__(self, observation: int, action: int, dimension: int, outputs: int, hidden: int, rngs: nnx.Rngs):
        """Widths of the observation, the action (0: it is not an input), the task vector, the output and the layers."""
        self.acting = MLP((observation + action, hidden, hidden // 2), rngs)
        self.task = MLP((observation + dimension, hidden, hidden // 2), rngs)
        self.head = MLP((hidden // 2 * 2, hidden, outputs), rngs, bounded=False)

    def __call__(
        self,
        x: Float[Array, "*batch input"],
        observation: Float[Array, "*batch observation"],
        z: Float[Array, "*batch d"],
    ) -> Float[Array, "*batch output"]:
        """`x`: the observation, followed by the action where that is an input."""
        embedded = [self.acting(x), self.task(jnp.concatenate([observation, z], axis=-1))]
        return self.head(nnx.relu(jnp.concatenate(embedded, axis=-1)))


class Representation(nnx.Module):
    """F, twice as TD3's critics, and B."""

    def __init__(self, config: Config, observation_size: int, action_size: int, rngs: nnx.Rngs):
        """Independent networks; both F are of one shape."""
        sizes = (observation_size, action_size, config.dimension, config.dimension, config.hidden)
        self.f1, self.f2 = Conditioned(*sizes, rngs), Conditioned(*sizes, rngs)
        self.goal_space = config.goal_space or tuple(range(observation_size))
        self.b = MLP((len(self.goal_space), *config.backward_hidden, config.dimension), rngs)

    def forward(
        self,
        observation: Float[Array, "batch observation"],
        action: Float[Array, "batch action"],
        z: Float[Array, "batch d"],
    ) -> Float[Array, "2 batch d"]:
        """F1 and F2."""
        x = jnp.concatenate([observation, action], axis=-1)
        return jnp.stack([self.f1(x, observation, z), self.f2(x, observation, z)])

    def backward(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch d"]:
        """B, on the sphere of radius sqrt(d)."""
        return on_sphere(self.b(observation[..., np.array(self.goal_space)]))


class FBState(NamedTuple):
    """The learner: a pytree."""

    representation: Representation
    actor: Conditioned
    target: Representation
    optimizer: optax.OptState  # of the representation
    actor_optimizer: optax.OptState
    step: Int32[Array, ""]  # gradient steps taken
    key: Key[Array, ""]  # of the task vectors and the target noise


def on_sphere(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """x scaled to the norm sqrt(d), that of a vector whose components have a mean square of 1."""
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
    return x * (jnp.sqrt(jnp.float32(x.shape[-1])) / norm)


@partial(jax.jit, static_argnames=("config", "observation_size", "action_size"))
def init(config: Config, observation_size: int, action_size: int, seed: int) -> FBState:
    """A fresh learner; the target starts as a copy."""
    rngs = nnx.Rngs(jax.random.key(seed))
    representation = Representation(config, observation_size, action_size, rngs)
    actor = Conditioned(observation_size, 0, config.dimension, action_size, config.hidden, rngs)
    moments = optimizer_state(representation), optimizer_state(actor)
    return FBState(representation, actor, representation, *moments, jnp.zeros((), jnp.int32), jax.random.key(seed))


@jax.jit
def policy(
    actor: Conditioned, observation: Float[Array, "*batch observation"], z: Float[Array, "*batch d"]
) -> Float[Array, "*batch action"]:
    """The deterministic policy pi_z, in [-1, 1]."""
    return jnp.tanh(actor(observation, observation, z))


@jax.jit
def encode(representation: Representation, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch d"]:
    """B of normalised observations."""
    return representation.backward(observation)


@partial(jax.jit, static_argnames="config")
def update(config: Config, state: FBState, batches: Transitions) -> tuple[FBState, dict[str, Float[Array, ""]]]:
    """A gradient step for each minibatch of `batches`, fused into one compiled loop.

    Args:
        config: the hyper-parameters.
        state: the learner.
        batches: [updates, batch, ...]; each minibatch is used once; rewards are not read.

    Returns:
        The new state, and the means over the steps of `loss`, `grad_norm` (the representation's), `measure` and
        `orthonormality` (the loss's two parts) and `q` (of the actor's actions for their z).
    """
    state, metrics = jax.lax.scan(partial(_step, config), state, batches)
    return state, jax.tree.map(jnp.mean, metrics)


def _step(config: Config, state: FBState, batch: Transitions) -> tuple[FBState, dict[str, Float[Array, ""]]]:
    key, task_key, noise_key = jax.random.split(state.key, 3)
    z = draw_tasks(config, state.representation, batch.next_observation, task_key)
    target = measure_target(config, state, batch, z, noise_key)

    def loss(representation: Representation) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        b = representation.backward(batch.next_observation)
        measure = measure_loss(representation.forward(batch.observation, batch.action, z), b, target)
        departure = orthonormality_loss(b)
        return measure + config.orthonormality * departure, {"measure": measure, "orthonormality": departure}

    (total, parts), gradient = jax.value_and_grad(loss, has_aux=True)(state.representation)
    representation, optimizer = descend(config.lr, gradient, state.optimizer, state.representation)
    climbed = partial(actor_loss, config, representation, batch, z)
    (_, q), climb = jax.value_and_grad(climbed, has_aux=True)(state.actor)
    actor, actor_optimizer = descend(config.actor_lr, climb, state.actor_optimizer, state.actor)
    mean = polyak(config.tau, representation, state.target)
    state = FBState(representation, actor, mean, optimizer, actor_optimizer, state.step + 1, key)
    return state, {"loss": total, "grad_norm": optax.tree.norm(gradient), "q": q} | parts


def draw_tasks(
    config: Config, representation: Representation, observation: Float[Array, "batch observation"], key: Key[Array, ""]
) -> Float[Array, "batch d"]:
    """A task vector for each transition: B of a random observation of the minibatch, or uniform on the sphere."""
    order, normal, share = jax.random.split(key, 3)
    batch = len(observation)
    of_data = representation.backward(jax.random.permutation(order, observation))
    uniform = on_sphere(jax.random.normal(normal, (batch, config.dimension)))
    return jax.lax.stop_gradient(jnp.where(jax.random.uniform(share, (batch, 1)) < config.data_share, of_data, uniform))


def measure_target(
    config: Config, state: FBState, batch: Transitions, z: Float[Array, "batch d"], key: Key[Array, ""]
) -> Float[Array, "batch batch"]:
    """Row i, column j: the discounted density of x_j after s'_i under pi_z, by the target networks.

    The smaller of both F's, at the smoothed action, as TD3 does: discount * min_k F'_k(s', a', z) . B'(x).
    """
    noise = config.target_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -config.target_clip, config.target_clip)
    action = jnp.clip(policy(state.actor, batch.next_observation, z) + noise, -1.0, 1.0)
    forward = state.target.forward(batch.next_observation, action, z)
    density = jnp.min(forward @ state.target.backward(batch.next_observation).T, axis=0)
    return batch.discount[:, None] * density


def measure_loss(
    forward: Float[Array, "2 batch d"], backward: Float[Array, "batch d"], target: Float[Array, "batch batch"]
) -> Float[Array, ""]:
    """The loss of the successor measure (2022, equation 9), summed over both F.

    Mean over i != j of (F_i . B_j - target_ij)^2 / 2, less the mean over i of F_i . B_i: its minimum is the density
    P(x | s, a) / rho(x) + target, for x_j with j != i is a draw of the data's distribution rho, and x_i one of P.
    """
    density = forward @ backward.T
    other = 1.0 - jnp.eye(len(backward))
    pairs = len(backward) * (len(backward) - 1)
    apart = jnp.sum(jnp.square(density - target[None]) * other[None], axis=(1, 2)) / (2.0 * pairs)
    return jnp.sum(apart - jnp.mean(jnp.diagonal(density, axis1=1, axis2=2), axis=-1))


def orthonormality_loss(backward: Float[Array, "batch d"]) -> Float[Array, ""]:
    """||E[B B^T] - I||^2 up to a constant, without bias: mean over i != j of (B_i . B_j)^2 - 2 * mean of |B_i|^2."""
    products = backward @ backward.T
    other = 1.0 - jnp.eye(len(backward))
    pairs = len(backward) * (len(backward) - 1)
    return jnp.sum(jnp.square(products) * other) / pairs - 2.0 * jnp.mean(jnp.diagonal(products))


def actor_loss(
    config: Config, representation: Representation, batch: Transitions, z: Float[Array, "batch d"], actor: Conditioned
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The policy gradient through the smaller of both F(s, a, z) . z, and the mean of that."""
    action = policy(actor, batch.observation, z)
    q = jnp.min(jnp.sum(representation.forward(batch.observation, action, z) * z[None], axis=-1), axis=0)
    if config.bc_weight == 0:
        return -jnp.mean(q), jnp.mean(q)
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    cloning = jnp.mean(jnp.square(action - batch.action))
    return config.bc_weight * cloning - jnp.mean(q) / scale, jnp.mean(q)


class Agent(ReplayAgent[Config, FBState]):
    """The functions above as `ringrl train` and `ringrl evaluate` see them."""

    description = AgentDescription("Forward-backward", across_trials=True)

    def init(self, observation_size: int, action_size: int, seed: int) -> FBState:
        """See `init`. Raises UserError where `goal_space` names numbers that an observation does not have."""
        if max(self.config.goal_space, default=0) >= observation_size:
            raise UserError(
                f"agent.goal_space {list(self.config.goal_space)}: an observation has {observation_size} numbers; "
                f"give indices from 0 to {observation_size - 1}"
            )
        return init(self.config, observation_size, action_size, seed)

    def make_replay(self, capacity: int, observation_size: int, action_size: int) -> Replay:
        """An empty replay of single steps."""
        options = {"batch": self.config.batch, "gamma": self.config.gamma, "n_step": 1}
        return Replay(capacity, observation_size, action_size, **options)

    def update(self, state: FBState, batches: Transitions) -> tuple[FBState, dict[str, Float[Array, ""]]]:
        """See `update`."""
        return update(self.config, state, batches)

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """A context is a sum, so it may be of any length."""
        return RolloutSpec(context_steps=UNBOUNDED)

    def make_policy(self, state: FBState, normalizer: Normalizer, step: int) -> TrainedTaskVectorPolicy:
        """Acts with the task vector of its context."""

        def act(
            observation: Float32[np.ndarray, "envs observation"], z: Float32[np.ndarray, "envs d"]
        ) -> Float32[np.ndarray, "envs action"]:
            return np.asarray(policy(state.actor, observation, z))

        def code(observation: Float32[np.ndarray, "n observation"]) -> Float32[np.ndarray, "n d"]:
            return np.asarray(encode(state.representation, observation))

        return TrainedTaskVectorPolicy(code, act, self.config.dimension, normalizer, step)
