"""Check what users pass, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from cfptq.actions import ActionSet, ActionSpace
from cfptq.actions.columns import is_sparse
from cfptq.allocation import Budget
from cfptq.auditing import Protocol
from cfptq.errors import ActionSetError, BudgetError, ConfigurationError, DataError, ModelError
from cfptq.io.arguments import BOOLEAN, COUNT, PATH, SEED, TEXT, Argument, instance_of, number, one_of, optional
from cfptq.network import Head, OnnxModule
from cfptq.network.scikit_learn import is_scikit_learn_model
from cfptq.network.wrappers import check_inputs, describe_other_model, unwrap
from cfptq.pipeline.method import MAX_RESERVE, Method
from cfptq.pipeline.method_presets import METHODS
from cfptq.recourse.arguments import ACTION_SPACE, MODEL_TO_RUN, TARGET
from cfptq.training import QAT_METHODS, QatMethod

ROW_COUNT = replace(COUNT, error=DataError)
LOADER = Argument(
    lambda value: (isinstance(value, Iterable) and not isinstance(value, str | bytes)) or hasattr(value, "__getitem__") or is_sparse(value),
    "an iterable of batches, a tensor, an array or a DataFrame",
    error=DataError,
)
PEOPLE = Argument(
    lambda value: isinstance(value, pd.DataFrame | torch.Tensor | np.ndarray) or is_sparse(value),
    "a DataFrame of raw features, or a tensor or array of columns",
    error=DataError,
)
HIDDEN_BITS = Argument(lambda value: isinstance(value, Integral) and value in (8, 16, 32), "8, 16, or 32 for float", error=ModelError)
VALUES_PER_ROW = Argument(
    lambda value: isinstance(value, Sized | Iterable) and not isinstance(value, str | bytes | Mapping), "one value per row", error=DataError
)

#: Arguments that several public functions have, by name.
COMMON: Mapping[str, Argument] = {
    "model": Argument(
        lambda value: isinstance(value, nn.Module | str | os.PathLike) or is_scikit_learn_model(value),
        "a torch.nn.Module, the path of an ONNX file, or a fitted scikit-learn classifier",
        error=ModelError,
    ),
    "calib_loader": LOADER,
    "train_loader": LOADER,
    "test_loader": LOADER,
    "loader": LOADER,
    "action_set": ACTION_SPACE,
    "target": optional(TARGET),
    "output": optional(TEXT),
    "budget": optional(
        Argument(
            lambda value: isinstance(value, Budget) or number().accepts(value),
            "a number of average bits, or a cfptq.Budget",
            error=BudgetError,
        )
    ),
    "input_bits": optional(replace(one_of(("two-step",), "8, 16, 32 or 'two-step'", accepts=HIDDEN_BITS.accepts), error=ModelError)),
    "portable": BOOLEAN,
    "repair": BOOLEAN,
    "head": optional(replace(one_of([head.value for head in Head], accepts=lambda value: isinstance(value, Head)), error=ModelError)),
    "threshold": optional(replace(number("a probability between 0 and 1"), error=ModelError)),
    "max_rows": ROW_COUNT,
    "calibration_rows": ROW_COUNT,
    "seed": SEED,
    "progress": BOOLEAN,
    "protocol": optional(instance_of(Protocol, "a cfptq.auditing.Protocol")),
}

CALIBRATE: Mapping[str, Argument] = {
    **COMMON,
    "max_validity_drop": optional(replace(number("a share between 0 and 1", lambda value: 0 <= value <= 1), error=BudgetError)),
    "inputs": optional(
        Argument(
            lambda value: (
                isinstance(value, Mapping) and all(isinstance(part, Sequence) and not isinstance(part, str) for part in value.values())
            ),
            "a mapping from the name of an input to a list of columns",
            error=ModelError,
        )
    ),
    "method": one_of(METHODS, f"a cfptq.Method or one of {', '.join(METHODS)}", accepts=lambda value: isinstance(value, Method)),
    "activation_bits": optional(HIDDEN_BITS),
    "reserve": optional(number(f"a number from 0 to {MAX_RESERVE:g}", lambda value: 0 <= value <= MAX_RESERVE)),
    "groups": optional(
        Argument(
            lambda value: isinstance(value, str) or callable(value),
            "a feature's name, or a function from rows (N, ...) to one label each",
        )
    ),
}

QAT: Mapping[str, Argument] = {
    **COMMON,
    "method": one_of(QAT_METHODS, f"a QatMethod or one of {', '.join(QAT_METHODS)}", accepts=lambda value: isinstance(value, QatMethod)),
    "groups": optional(VALUES_PER_ROW),
    "activation_bits": HIDDEN_BITS,
    "checkpoint": optional(PATH),
    "log": optional(PATH),
    "fit": optional(Argument(callable, "a function from a trainer to its history")),
}

COMPARE: Mapping[str, Argument] = {
    **COMMON,
    "methods": Argument(
        lambda value: (
            isinstance(value, str | Method | QatMethod)
            or (isinstance(value, Sequence) and all(isinstance(entry, str | Method | QatMethod) for entry in value))
        ),
        "names of methods, or Method and QatMethod objects, one or several",
    ),
    "groups": optional(instance_of(Mapping, "a mapping from a name to one value per row", error=DataError)),
    "dataset": TEXT,
    "keep": optional(PATH),
}

TUNING_SCORE: Mapping[str, Argument] = {**COMMON, "max_accuracy_drop": number("a share from 0 to 1")}

AUDIT: Mapping[str, Argument] = {
    **COMMON,
    "f": MODEL_TO_RUN,
    "f_q": MODEL_TO_RUN,
    "people": PEOPLE,
    "issued": optional(PEOPLE),
    "id": optional(TEXT),
    "strict": BOOLEAN,
    "groups": Argument(
        lambda value: isinstance(value, str) or (isinstance(value, Iterable) and isinstance(value, Sized)),
        "the name of a column, several names, or a mapping from a name to one value per person",
        error=DataError,
    ),
    "label": optional(replace(VALUES_PER_ROW, accepts=lambda value: isinstance(value, str) or VALUES_PER_ROW.accepts(value))),
    "prove_within": optional(number("a finite radius of at least 0", lambda value: 0 <= value < float("inf"))),
}


def check_seed(seed: int) -> None:
    """Check that ``seed`` is a whole number from 0 to 2**32 - 1.

    Raises:
        ConfigurationError: it is not.
    """
    SEED.check("seed", seed)


def check_layers(layers: Mapping[str, int] | None) -> None:
    """Check that ``layers`` maps names to bits.

    Raises:
        ConfigurationError: it does not.
    """
    if not (layers is None or isinstance(layers, Mapping)):
        raise ConfigurationError(f"layers must map each layer's name to its bits, got {layers!r}. Pass for example {{'head': 8}}.")
    for name, bits in (layers or {}).items():
        COUNT.check(f"layers[{name!r}]", bits)


def check_budget_or_limit(budget: object, max_validity_drop: object) -> None:
    """Check that not both a budget and a limit on Validity Drop are given.

    Raises:
        ConfigurationError: both are.
    """
    if budget is not None and max_validity_drop is not None:
        raise ConfigurationError("budget and max_validity_drop must not both be given. A budget fixes the bits, and a limit finds them.")


def check_action_space(action_set: ActionSpace) -> ActionSpace:
    """Return the action set, checked to speak of the model's columns.

    Raises:
        ActionSetError: it speaks of raw features, or it is no action space.
    """
    if isinstance(action_set, ActionSet) and not action_set.is_encoded:
        raise ActionSetError(
            "action_set must speak of the model's columns, and this one speaks of raw features. Call "
            "action_set.encoded_by(your fitted ColumnTransformer)."
        )
    if not isinstance(action_set, ActionSpace):
        raise ActionSetError(
            f"action_set must be a cfptq.ActionSet, or have the methods of cfptq.actions.ActionSpace, got a {type(action_set).__name__}."
        )
    return action_set


def as_module(model: nn.Module | str | os.PathLike[str], output: str | None = None) -> nn.Module:
    """Return a module without wrappers such as ``torch.compile``, and an ONNX file as a module.

    Args:
        model: a module, or the path of an ONNX file.
        output: name of the file's output with the class scores; None finds it.

    Raises:
        ModelError: ``model`` is neither, its forward needs several inputs, the file cannot be read, or ``output`` is given for a module.
    """
    if isinstance(model, str | os.PathLike):
        return OnnxModule(model, output=output)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model must be a torch.nn.Module or the path of an ONNX file, got a {type(model).__name__}. {describe_other_model(model)}"
        )
    if output is not None:
        raise ModelError(
            f"output must be None for a module, which returns its scores alone, got {output!r}. It names an output of an ONNX file."
        )
    plain = unwrap(model)
    check_inputs(plain)
    return plain


def look_up_columns(
    people: pd.DataFrame | torch.Tensor, groups: str | Sequence[str] | Mapping[str, Sequence[Any]], label: str | Sequence[int] | None
) -> tuple[dict[str, Any], Any]:
    """Return the values of groups and labels, looked up in ``people`` where they name its columns.

    Args:
        people: raw features (a DataFrame) or columns (a tensor).
        groups: one or several columns of ``people``, or name -> one value per person.
        label: a column of ``people``, or one class per person, or None.

    Raises:
        DataError: ``people`` has no such column.
    """

    def find_column(name: str) -> Any:
        if not isinstance(people, pd.DataFrame):
            raise DataError(f"{name!r} names a column, so people must be a DataFrame, got a {type(people).__name__}. Give the values.")
        if name not in people.columns:
            raise DataError(f"people must have a column {name!r}. Its columns are {', '.join(map(str, people.columns))}.")
        return people[name].to_numpy()

    names = (groups,) if isinstance(groups, str) else groups
    found = dict(names) if isinstance(names, Mapping) else {name: find_column(name) for name in names}
    return found, find_column(label) if isinstance(label, str) else label
