"""How a run's agent is rolled out: the agent's own `RolloutSpec` under the run's evaluation settings."""

from dataclasses import replace

from ringrl.agent import Agent, RolloutSpec
from ringrl.config import EvaluationConfig
from ringrl.errors import UserError


def under_setting(spec: RolloutSpec, setting: EvaluationConfig, agent: Agent) -> RolloutSpec:
    """`spec` with the setting's target and context (in tokens), where it gives them and the agent has such a thing.

    Raises:
        UserError: a context of less than a step.
    """
    if setting.target is not None and spec.target is not None:
        spec = replace(spec, target=setting.target)
    if setting.context is None or agent.decoder is None:
        return spec
    tokens_per_step = agent.decoder.tokens.tokens_per_step
    if setting.context < tokens_per_step:
        raise UserError(
            f"evaluation.context (--context) is {setting.context}: a step of this agent takes {tokens_per_step} "
            "tokens; give at least that"
        )
    return replace(spec, context_steps=setting.context // tokens_per_step)
