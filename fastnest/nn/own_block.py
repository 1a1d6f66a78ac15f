"""What fastnest's own blocks on images share: they run by their op, or module by module where the op would not do."""

import torch
from torch.nn.modules.module import _has_any_global_hook

from .plan import DensePlan, ResidualPlan
from .scripting import NotScriptable


class OwnBlock(NotScriptable):
    """A block that runs one op as long as its modules are what that op computes.

    Users change modules: another activation or norm, an adapter around a convolution, pruning, hooks. What a module
    does is then more than its weight says, and the modules run themselves.
    """

    def _look(self) -> DensePlan | ResidualPlan | str:
        """How the op computes this block, or why it does not."""
        raise NotImplementedError

    def plan_now(self) -> DensePlan | ResidualPlan | str:
        """How the op computes this block now, or why its modules have to run themselves.

        Modules are looked at closely only where some were replaced.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # public, but not by torch's own list
            return "under torch.jit.trace, which records torch's own operators only"
        plan: DensePlan | ResidualPlan | str | None = self.__dict__.get("_plan")
        if plan is None or isinstance(plan, str) or plan.parts.why_others(self) is not None:
            if torch.compiler.is_compiling():
                return "modules inside were replaced, and it was not called since, other than by torch.compile"
            plan = self.__dict__["_plan"] = self._look()
            if isinstance(plan, str):
                return plan
        reason = plan.parts.why_unlike(self)
        if reason is None and _has_any_global_hook():
            reason = "hooks on all modules, which the op would not call"
        return plan if reason is None else reason
