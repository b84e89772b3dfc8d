"""Decision-Pretrained Transformer (Lee et al. 2023): tell from trajectories of a task what its expert would do here.

- context: n whole trajectories of one hidden task in no order, of any quality; each context is of another task
- tokens: observation, and the action and reward before it in its trial, one token a step; no returns. So no step sees a
  trial's last reward: where trials end as they are paid, set `fused: false`
- labels: at every step the action that a teacher or demonstrator, who sees the task, would take; what was done is
  context alone
- loss: the head's, of the labels, at every step of the context, so that each number of trajectories is trained at once
- acts: on k given trajectories or its own trials in one context, with no weight update; the mode of the head

The paper (arXiv:2306.14892, sections 3 and 4) has an optimal policy label one query state a context. Here the teacher
may be an agent that learned from the same data (`ringrl train` of `td3` on the task's visible twin), and then nobody
has to know the task's solution. Without a teacher the labels are the actions of a demonstrator that the store has
(`ringrl data collect_histories --demonstrator`).
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydantic import Field, model_validator

from ringrl.agent import AgentDescription, RolloutSpec
from ringrl.config import AgentConfig, RunConfig
from ringrl.model.tokens import TokenLayout
from ringrl.sampling.relabelled import Episodes
from ringrl.sampling.relabelled_samplers import sample_one_task
from ringrl.sampling.samplers import ContextSampler
from ringrl.sequence_agent import LabelledSequenceAgent
from ringrl.training.teacher import Labels, demonstrator_labels, teacher_labels


class Config(AgentConfig):
    """Hyper-parameters."""

    fused: bool = True  # one token a step (previous action, previous reward, observation); False: one a modality
    trajectories: int = Field(default=4, ge=1)  # n, the most trajectories in a context
    # the fewest: each context has a uniform number from here to n (with packing, rows are filled); None: always n
    fewest: int | None = Field(default=None, ge=1)
    within_source: bool = False  # whether a context is of one source only: for stores where a source is a hidden task
    # a run of an agent that sees the task, as td3 on its visible twin; None: the store's demonstrator
    teacher: str | None = None

    @model_validator(mode="after")
    def _check_fewest(self) -> "Config":
        if self.fewest is not None and self.fewest > self.trajectories:
            raise ValueError(f"fewest is {self.fewest}, more than trajectories {self.trajectories}")
        return self


class Agent(LabelledSequenceAgent[Config]):
    """A context of trajectories predicts what the teacher of their task would do."""

    description = AgentDescription("Decision-Pretrained Transformer", across_trials=True)

    def context_sampler(self, store: Episodes, task: str, action_repeat: int) -> ContextSampler:
        """Trajectories in no order (the paper's section 3); on tasks of a family all paid by a member drawn for them.

        `data.hindsight` is the share of members that pay at a state of the context. Raises UserError where a context
        would mix the hidden tasks of several sources.
        """
        c = self.config
        return sample_one_task(store, task, c.trajectories, c.fewest, within_source=c.within_source)

    def labels(self, config: RunConfig, episodes: Episodes) -> Labels:
        """The teacher's or the demonstrator's actions. Raises UserError where there are none, or of another task."""
        if self.config.teacher is None:
            return demonstrator_labels(episodes, config.data.task)
        return teacher_labels(Path(self.config.teacher).expanduser(), config, episodes)

    def tokens(self) -> TokenLayout:
        """Observation, action, reward."""
        return TokenLayout(("observation", "action", "reward"), fused=self.config.fused)

    def rollout_spec(self, row_steps: int, returns: Float64[np.ndarray, " episodes"]) -> RolloutSpec:
        """Without a target; what the task is must come from the context."""
        return RolloutSpec(row_steps, sample=self.config.sample)
