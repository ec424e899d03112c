"""Wrappers around a module, and the inputs of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import onnx
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


def describe_other_model(model: object) -> str:
    """Return the sentence that says what to give in place of a model that is neither a module nor the path of an ONNX file."""
    if isinstance(model, torch.export.ExportedProgram):
        return "Give the nn.Module that was exported, or write the program to a file with torch.onnx.export and give its path."
    if isinstance(model, onnx.ModelProto):
        return "Write it to a file with onnx.save, and give its path."
    if isinstance(model, Mapping):
        return "A state dict has no forward. Load it with load_state_dict, and give the module."
    if hasattr(model, "predict_proba"):
        return "Export the estimator to ONNX, for instance with skl2onnx, and give the file's path."
    if callable(model):
        return "A function has no weights to quantize. Give the module that it calls. cfptq.audit takes functions too."
    return "Give the trained model."
