"""Arguments that recourse, audits and quantization share, as their checks describe them."""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any

import onnx
from torch import Tensor, nn

from cfptq.actions.action_set import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.errors import ActionSetError, DataError, ModelError
from cfptq.io.arguments import Argument
from cfptq.network.predictor import Predictor


def _is_model(value: Any) -> bool:
    return isinstance(value, nn.Module | str | os.PathLike | onnx.ModelProto | Predictor) or callable(value)


def _is_target(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, Integral | Tensor) or callable(value))


def _is_action_space(value: Any) -> bool:
    # A class has the methods too, and is no action space before it is called.
    if isinstance(value, ActionSet):
        return True  # On raw features it has no columns yet, which a pipeline may give it.
    return isinstance(value, ActionSpace) and not isinstance(value, type)


ACTION_SPACE = Argument(_is_action_space, "a cfptq.ActionSet, or have the methods of cfptq.actions.ActionSpace", error=ActionSetError)
MODEL_TO_RUN = Argument(_is_model, "an ONNX file, a torch.nn.Module, a function or a predictor", error=ModelError)
TARGET = Argument(_is_target, "a class, a tensor of one class per row, or a rule (rows, logits) -> classes", error=DataError)
