"""Replicas of modules as nn.DataParallel makes them for every device, on the CPU."""

from collections import OrderedDict

import torch


def replica(module: torch.nn.Module) -> torch.nn.Module:
    """A replica as torch.nn.parallel.replicate makes it: its parameters are copies that hand gradients to the module's.

    They are attributes of the replica, whose `_parameters` are empty (but for the absent ones). Buffers are those of
    the module, as on DataParallel's first device.
    """
    copies = {parameter: parameter.clone() for parameter in module.parameters()}
    made: dict[torch.nn.Module, torch.nn.Module] = {}
    for one in module.modules():
        made[one] = one._replicate_for_data_parallel()
        made[one]._former_parameters = OrderedDict()
    for one, copy in made.items():
        for name, child in one._modules.items():
            if child is None:
                copy._modules[name] = None
            else:
                setattr(copy, name, made[child])
        for name, parameter in one._parameters.items():
            if parameter is None:
                copy._parameters[name] = None
            else:
                setattr(copy, name, copies[parameter])
                copy._former_parameters[name] = copies[parameter]
    return made[module]
