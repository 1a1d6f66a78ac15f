"""What torch.jit.script is told."""

from typing import NoReturn

import torch


class NotScriptable(torch.nn.Module):
    """A module whose forward is Python that TorchScript does not know: said in one line, not after pages of types."""

    def __prepare_scriptable__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"torch.jit.script cannot compile {name}: use torch.jit.trace or torch.export instead")
