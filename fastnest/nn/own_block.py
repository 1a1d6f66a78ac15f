"""What fastnest's own blocks on images share: they run by their op, or module by module where the op would not do."""

import torch
from torch.nn.modules.module import _has_any_global_hook

from .parts import Refusal
from .plan import DensePlan, ResidualPlan
from .scripting import NotScriptable


class OwnBlock(NotScriptable):
    """A block that runs one op as long as its modules are what that op computes.

    Users change modules: another activation or norm, an adapter around a convolution, pruning, hooks. What a module
    does is then more than its weight says, and the modules run themselves. Subclasses end their __init__ with
    `_look_closely`.
    """

    _plan: DensePlan | ResidualPlan | Refusal

    def _look(self) -> DensePlan | ResidualPlan | str:
        """How the op computes this block, or why it does not."""
        raise NotImplementedError

    def _look_closely(self) -> None:
        found = self._look()
        self.__dict__["_plan"] = Refusal.of(self, found) if isinstance(found, str) else found

    def plan_now(self) -> DensePlan | ResidualPlan | str:
        """How the op computes this block now, or why its modules have to run themselves.

        They are looked at closely only after they were changed.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # public, but not by torch's own list
            return "under torch.jit.trace, which records torch's own operators only"
        plan: DensePlan | ResidualPlan | Refusal | None = self.__dict__.get("_plan")
        if plan is None or not (plan.holds(self) if isinstance(plan, Refusal) else plan.parts.why_others(self) is None):
            if torch.compiler.is_compiling():
                return "modules inside were replaced, and it was not called since, other than by torch.compile"
            self._look_closely()
            plan = self._plan
        if isinstance(plan, Refusal):
            return plan.reason
        reason = plan.parts.why_unlike(self)
        if reason is None and _has_any_global_hook():
            reason = "hooks on all modules, which the op would not call"
        return plan if reason is None else reason
