"""What fits on which devices: the paper's closed form, and the TPU compiler's own answer."""

from ringrl.planner.compiled import CompiledPlan, CompilerError, plan_training_step
from ringrl.planner.longest_context import Attempt, MaxContext, find_max_context

__all__ = ["Attempt", "CompiledPlan", "CompilerError", "MaxContext", "find_max_context", "plan_training_step"]
