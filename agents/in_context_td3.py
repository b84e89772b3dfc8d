"""In-context TD3: an actor that reads a hidden task from its context, and climbs critics that see the task.

- context: n whole trajectories of one hidden task in no order, of any quality; each context is of another task
- tokens: observation, and the action and reward before it in its trial, one token a step; no returns. So no step sees a
  trial's last reward: where trials end as they are paid, set `fused: false`
- loss: at every step what the actor's action loses of the teacher's value, by the teacher's first critic
- acts: on k given trajectories or its own trials in one context, with no weight update and no noise

The critics are those of a TD3 that sees the task (`agent.teacher`: a run of `td3` on the task's visible twin, trained
on the same reward-free data); they are frozen, for what they have to learn is no harder than that run. The actor sees
the context alone: an asymmetric actor-critic (Pinto et al. 2017, arXiv:1710.06542). With Q the first critic, mu the
actor's action in context h, b the teacher's and m the member that pays,

    loss = (Q(s, b, m) - Q(s, mu(h, s), m)) / (|Q(s, b, m) - Q(s, -b, m)| + floor |Q(s, b, m)|) + w |mu(h, s) - b|^2

so a step costs 0 where mu is as good as b and 1 where it is as bad as its opposite, near the goal and far from it.
The least expected loss of a context that leaves several members possible is that of the action of the greatest expected
value, while cloning (`agents/decision_pretrained.py`) settles on the mean of the teacher's actions.

Cloning was no worse all the same. A point mass, a hidden goal of 30 mm, trials of 20 agent steps of 0.4 s, 6,000
reward-free trajectories; 2 layers of width 32; 800 gradient steps on 32 rows of 8 trajectories (70 s on one core), then
250 on 4 rows of 64; equal data and steps, one seed; mean return after k trajectories of 256 unseen goals:

| learned from | k = 0 | 2 | 4 | 8 | 16 | 32 | 63 |
|---|---|---|---|---|---|---|---|
| the teacher's actions, as `decision_pretrained` | 1.0 | 3.5 | 6.3 | 9.9 | 12.3 | 14.2 | 14.6 |
| the loss above, w = 0.3 | 0.9 | 3.5 | 6.0 | 9.3 | 11.9 | 14.0 | 14.6 |
| the loss above, w = 0 | 1.3 | 3.3 | 5.2 | 7.9 | 10.4 | 12.0 | 13.1 |
| (the teacher, sent to the best state of the context; it has 14.9) | | 3.6 | 6.5 | 10.0 | 12.7 | 14.3 | 14.7 |

Standard errors are 0.2 to 0.45. After the 800 steps alone, k = 0, 2, 4, 8, 128 goals, standard errors 0.1 to 0.6:
cloning 1.0, 3.6, 5.5, 8.4; w = 0 1.9, 3.9, 6.0, 7.6; -Q without the span 1.6, 3.5, 4.8, 6.9; the recorded actions,
weighted by exp of the critic's advantage and with no action of the teacher, 1.2, 3.2, 4.5, 6.7; a critic in context,
distilled from Q, with an actor that climbs it, 0.4 throughout: it explained 30 % of the advantages, and the actor
climbed its errors. By the critic itself the climber loses less than the clone in the data's states (0.0029 against
0.0042 of a mean |Q|), but what an action changes is 2 to 6 % of Q there: small errors of a critic are large ones of an
action.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from pydantic import Field, model_validator

from ringrl.agent import AgentDescription, RolloutSpec
from ringrl.batch import MEMBER_BATCH_SCHEMA
from ringrl.config import AgentConfig, RunConfig
from ringrl.errors import UserError
from ringrl.model.output_heads import OutputHead
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.normalizer import Normalizer
from ringrl.sampling.relabelled import Episodes
from ringrl.sampling.relabelled_samplers import sample_one_task
from ringrl.sampling.samplers import ContextSampler
from ringrl.sequence_agent import LabelledSequenceAgent, Losses, Prediction
from ringrl.training.sequence_trainer import SequenceTrainer
from ringrl.training.teacher import Labels, teacher_labels
from ringrl.training.teacher_critics import TeacherCritics, teacher_critics
from ringrl.training.training_data import ContextData


class Config(AgentConfig):
    """Hyper-parameters."""

    fused: bool = True  # one token a step (previous action, previous reward, observation); False: one a modality
    trajectories: int = Field(default=4, ge=1)  # n, the most trajectories in a context
    # the fewest: each context has a uniform number from here to n (with packing, rows are filled); None: always n
    fewest: int | None = Field(default=None, ge=1)
    within_source: bool = False  # whether a context is of one source only: for stores where a source is a hidden task
    teacher: str | None = None  # a run of an agent with critics that sees the task, as td3 on its visible twin
    clone_weight: float = Field(default=0.3, ge=0)  # w, of cloning the teacher's action beside its critic
    floor: float = Field(default=0.02, gt=0)  # share of |Q| below which a difference of values is none

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.fewest is not None and self.fewest > self.trajectories:
            raise ValueError(f"fewest is {self.fewest}, more than trajectories {self.trajectories}")
        if self.head != "tanh_mse" or self.sample:
            raise ValueError("its actor is deterministic: leave head at tanh_mse and sample at false")
        return self


class Agent(LabelledSequenceAgent[Config]):
    """A context of trajectories gives the action that is worth most to who sees their task."""

    description = AgentDescription("In-context TD3", across_trials=True)

    def context_sampler(self, store: Episodes, task: str, action_repeat: int) -> ContextSampler:
        """Trajectories in no order; on tasks of a family all paid by a member drawn for them.

        Raises UserError where a context would mix the hidden tasks of several sources.
        """
        c = self.config
        return sample_one_task(store, task, c.trajectories, c.fewest, within_source=c.within_source)

    def labels(self, config: RunConfig, episodes: Episodes) -> Labels:
        """The teacher's actions, against whose values the actor's are measured."""
        return teacher_labels(self._teacher, config, episodes)

    def make_trainer(self, config: RunConfig) -> SequenceTrainer:
        """Gradient steps on batches of contexts. Raises UserError where a setting does not fit.

        `decoder`, by which `ringrl plan` counts, has the loss of cloning: the critics are two small networks more.
        """
        data = ContextData(config, self.context_sampler, self.labels, members=True)
        critics = teacher_critics(self._teacher, config, data.episodes)

        def loss(head: OutputHead, prediction: Prediction, batch: Mapping[str, jax.Array]) -> Losses:
            return self.regret(head, prediction, batch, critics, data.scales)

        return SequenceTrainer(config, replace(self.decoder, loss=loss, schema=MEMBER_BATCH_SCHEMA), data)

    def regret(
        self,
        head: OutputHead,
        prediction: Prediction,
        batch: Mapping[str, jax.Array],
        critics: TeacherCritics,
        scales: Normalizer,
    ) -> Losses:
        """The loss of each step; `batch`: of a `ringrl.batch.MemberBatch`, normalised by `scales`."""
        best, action = batch["label"], head.act(prediction, None)
        value, top, low = (critics.values(batch, each, scales) for each in (action, best, -best))
        span = jnp.abs(top - low) + self.config.floor * jnp.abs(top) + 1e-6
        away = jnp.mean(jnp.square(action - best), axis=-1)
        return (top - value) / span + self.config.clone_weight * away

    @property
    def _teacher(self) -> Path:
        if self.config.teacher is None:
            raise UserError(
                "agent.teacher: give the run of an agent with critics that sees the task, as td3 on its twin"
            )
        return Path(self.config.teacher).expanduser()

    def tokens(self) -> TokenLayout:
        """Observation, action, reward."""
        return TokenLayout(("observation", "action", "reward"), fused=self.config.fused)

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """Without a target; what the task is must come from the context."""
        return RolloutSpec(row_steps)
