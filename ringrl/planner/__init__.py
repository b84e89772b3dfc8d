"""What fits on which devices: the paper's closed form, and what the real TPU and CUDA compilers assign.

`plan_training_step` compiles a config's training step for a slice, `find_max_context` searches the longest row that
fits; `plan_decode` and `find_max_cache` do so for a rollout's agent step. `plan_exchanges` compares the ways to
exchange keys, `hidden_from` is the block from which a hop is hidden.
"""

from ringrl.planner.closed_form import hidden_from
from ringrl.planner.compiled import CompiledPlan, CompilerError, plan_training_step
from ringrl.planner.decode_plan import DecodePlan, MaxCache, find_max_cache, plan_decode
from ringrl.planner.exchanges import ExchangePlan, plan_exchanges
from ringrl.planner.length_search import Attempt
from ringrl.planner.longest_context import MaxContext, find_max_context

__all__ = [
    "Attempt",
    "CompiledPlan",
    "CompilerError",
    "DecodePlan",
    "ExchangePlan",
    "MaxCache",
    "MaxContext",
    "find_max_cache",
    "find_max_context",
    "hidden_from",
    "plan_decode",
    "plan_exchanges",
    "plan_training_step",
]
