"""Wrappers around a module, and the inputs of its forward."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.optim.swa_utils import AveragedModel

from cfptq.errors import ModelError

#: Kinds of parameters that are given by position.
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``AveragedModel``.

    Other modules are returned as they are.
    """
    while True:
        if isinstance(model, OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        else:
            return model


def check_inputs(model: nn.Module) -> None:
    """Check that the module's forward can be called with one tensor.

    Raises:
        ModelError: it needs several inputs, or takes none. The message names them.
    """
    if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
        return
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [entry.name for entry in parameters if entry.kind in POSITIONAL and entry.default is entry.empty]
    needed += [entry.name for entry in parameters if entry.kind is entry.KEYWORD_ONLY and entry.default is entry.empty]
    takes_one = any(entry.kind in (*POSITIONAL, entry.VAR_POSITIONAL) for entry in parameters)
    called = type(model).__name__
    if len(needed) > 1:
        listed = f"{', '.join(needed[:-1])} and {needed[-1]}"
        raise ModelError(
            f"The model must take one tensor of columns, but the forward of {called} needs {listed}. "
            f"To give it one, wrap it in a module whose forward(x) splits the columns of x into {listed}."
        )
    if not takes_one:
        raise ModelError(
            f"The model must take one tensor of columns, but the forward of {called} takes none. Wrap it in a module that does."
        )


def takes_any_number(model: nn.Module) -> bool:
    """Check whether the first parameter of the module's forward is ``*args``."""
    try:
        first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    except (TypeError, ValueError):
        return False
    return first is not None and first.kind is first.VAR_POSITIONAL
