"""What fastnest's own blocks on images share: they run by their op, or module by module where the op would not do."""

import torch
from torch import Tensor
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


def run_child(name: str, child: torch.nn.Module | None, x: Tensor) -> Tensor:
    """child(x), a tensor; a RuntimeError, ValueError or TypeError of its own is raised again with the child's name."""
    if child is None:
        raise TypeError(f"{name} must be a torch.nn.Module, got None")
    try:
        y = child(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        kind = next(kind for kind in (RuntimeError, ValueError, TypeError) if isinstance(error, kind))
        raise kind(f"{name} ({type(child).__name__}): {error}") from error
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must return a torch.Tensor, got {type(y).__name__}")
    return y
