"""What networks are trained for: one class a term of the loss, listed in `objectives.table`."""

from arvrm.model.objectives.base import Objective, masked_mean
from arvrm.model.objectives.steps import HandStep, PolicyStep
from arvrm.model.objectives.table import OF_HANDS, OF_POLICIES, check_others, register

__all__ = ["OF_HANDS", "OF_POLICIES", "HandStep", "Objective", "PolicyStep", "check_others", "masked_mean", "register"]
