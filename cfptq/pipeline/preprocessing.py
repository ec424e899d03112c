"""Files that take raw columns, with the preprocessing before the quantized model and the decision after it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper

from cfptq.backends.preprocessing import add_preprocessing, list_raw_columns, make_raw_rows
from cfptq.errors import DataError, DataWarning, ModelError, name_rows
from cfptq.network import DecisionRule, Head
from cfptq.network.head import compute_threshold_logit
from cfptq.network.onnx.file import OUTPUT_KEY, OnnxFile
from cfptq.network.onnx.raw_inputs import read_columns_tensor, run_raw

Columns: TypeAlias = npt.NDArray[np.float32]

#: Outputs that a file may have after its scores.
DECISION_OUTPUTS = ("label", "probability")
#: Rows that the preprocessing is checked on where no people are given.
CHECK_ROWS = 512
#: Float32 steps by which a column of the file may differ from the encoder's.
MAX_STEPS = 4


def encode_with(encoder: Any, frame: pd.DataFrame) -> Columns:
    """Return the columns that a fitted encoder, or a pipeline without its predictor, gives for raw rows, dense float32 (N, d)."""
    steps = getattr(encoder, "steps", None)
    if steps and hasattr(steps[-1][1], "predict"):
        encoder = encoder[:-1]
    shown = encoder.transform(frame)
    dense = shown.toarray() if hasattr(shown, "toarray") else np.asarray(shown)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(dense, dtype=np.float32)


def add_decision_outputs(
    model: onnx.ModelProto, outputs: Sequence[str], decision: DecisionRule, classes: Sequence[Any] | None
) -> onnx.ModelProto:
    """Return a model with the label (N,) and the probability of each class (N, C) as further outputs.

    Args:
        model: the model, whose only float output are its scores.
        outputs: names from ``DECISION_OUTPUTS``.
        decision: head of the scores and decision threshold.
        classes: class names; None gives indices.
    """
    unknown = [name for name in outputs if name not in DECISION_OUTPUTS]
    if unknown:
        raise ModelError(f"outputs must be among {', '.join(DECISION_OUTPUTS)}, got {unknown[0]!r}.")
    if not outputs:
        return model
    if len(model.graph.output) != 1:
        names = ", ".join(value.name for value in model.graph.output)
        raise ModelError(f"outputs needs a model with its scores alone, and this one has {names}. Leave outputs out.")
    dressed = onnx.ModelProto()
    dressed.CopyFrom(model)
    graph, scores = dressed.graph, model.graph.output[0].name

    def add(operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(operator, list(inputs), [name], f"{name}_{operator}", **attributes))
        return name

    def hold(values: Any, name: str, dtype: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    threshold = decision.threshold if decision.threshold is not None else 0.5
    if decision.head in (Head.LOGIT, Head.PROBABILITY):
        column = add("Reshape", [scores, hold([-1, 1], "decision_column", np.int64)], "decision_score")
        is_logit = decision.head is Head.LOGIT
        limit = compute_threshold_logit(threshold) if is_logit else threshold
        is_one = add("Greater", [column, hold([[limit]], "decision_limit", np.float32)], "decision_is_one")
        place = add("Reshape", [is_one, hold([-1], "decision_flat", np.int64)], "decision_flags")
        place = add("Cast", [place], "decision_place", to=TensorProto.INT64)
        one = add("Sigmoid", [column], "decision_one") if is_logit else column
        zero = add("Sub", [hold([[1.0]], "decision_whole", np.float32), one], "decision_zero")
        probability = add("Concat", [zero, one], "probability", axis=1)
    else:
        is_logits = decision.head is Head.LOGITS
        probability = add("Softmax" if is_logits else "Identity", [scores], "probability", **({"axis": 1} if is_logits else {}))
        ranked = scores
        if decision.threshold is not None:
            logits = scores if is_logits else add("Log", [scores], "decision_logits")
            shift = hold([[0.0, compute_threshold_logit(threshold)]], "decision_shift", np.float32)
            ranked = add("Sub", [logits, shift], "decision_shifted")
        place = add("ArgMax", [ranked], "decision_place", axis=1, keepdims=0)
    kind = TensorProto.INT64
    if classes is None:
        add("Identity", [place], "label")
    elif all(isinstance(entry, int | np.integer) and not isinstance(entry, bool) for entry in classes):
        add("Gather", [hold(classes, "decision_classes", np.int64), place], "label")
    else:
        kind = TensorProto.STRING
        words: Any = [str(entry) for entry in classes]
        graph.initializer.append(helper.make_tensor("decision_classes", TensorProto.STRING, [len(words)], words))
        add("Gather", ["decision_classes", place], "label")
    for name in outputs:
        form: tuple[int, list[str | None]] = (kind, ["rows"]) if name == "label" else (TensorProto.FLOAT, ["rows", None])
        graph.output.append(helper.make_tensor_value_info(name, *form))
    helper.set_model_props(dressed, {entry.key: entry.value for entry in dressed.metadata_props} | {OUTPUT_KEY: scores})
    _drop_unused(graph, probability if "probability" not in outputs else "", "label" if "label" not in outputs else "")
    return dressed


def _drop_unused(graph: onnx.GraphProto, *unused: str) -> None:
    """Remove the nodes that compute only these tensors."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if set(node.output) & wanted:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            wanted |= set(node.input)
    if any(unused):
        used = {name for node in kept for name in node.input}
        constants = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(constants)


def put_preprocessing_before(
    model: onnx.ModelProto, encoder: Any, people: pd.DataFrame | None, columns: torch.Tensor | None, seed: int, decision: DecisionRule
) -> onnx.ModelProto:
    """Return a model that takes raw columns, compared with the fitted encoder and the model on raw rows.

    Args:
        model: the quantized model.
        encoder: the fitted encoder, or a pipeline with it.
        people: raw rows to check on, which tell the types of the inputs; None makes rows from ``columns``.
        columns: rows (N, d) of the model's columns; None draws them.
        seed: seed of drawn values.
        decision: head of the model's scores and decision threshold.

    Raises:
        ActionSetError: a step cannot be read.
        ModelError: a step has no form as ONNX nodes, or the model gives other columns than the encoder.

    Warns:
        DataWarning: the model decides some of the people otherwise than the encoder and the model do one after the other.
    """
    joined = add_preprocessing(model, encoder, people)
    if people is None:
        width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        drawn = torch.randn(CHECK_ROWS, width, generator=torch.Generator().manual_seed(seed))
        people = make_raw_rows(encoder, (drawn if columns is None else columns)[:CHECK_ROWS].numpy(), seed)
    _compare(joined, model, encoder, people, decision)
    return joined


def _compare(joined: onnx.ModelProto, model: onnx.ModelProto, encoder: Any, people: pd.DataFrame, decision: DecisionRule) -> None:
    missing = [name for name in list_raw_columns(encoder) if name not in people.columns]
    if missing:
        raise DataError(f"people must have the raw column {missing[0]!r}, which the encoder reads.")
    expected = encode_with(encoder, people)
    file = OnnxFile(model)
    tensors = [str(read_columns_tensor(joined)), file.output]
    columns, scores = run_raw(joined, people, tensors)
    with np.errstate(invalid="ignore"):
        is_same = np.abs(columns - expected) <= MAX_STEPS * np.maximum(np.spacing(np.abs(expected)), np.float32(2.0**-22))
    differs = ~(is_same | (columns == expected) | (np.isnan(columns) & np.isnan(expected)))
    is_other = differs.any(axis=1)
    is_other &= ~_is_near_edge(encoder, people)
    if is_other.any():
        place = int(np.flatnonzero(differs.any(axis=0))[0])
        raise ModelError(
            f"The file must encode raw rows as the encoder does, but its column {place} differs in rows "
            f"{name_rows(np.flatnonzero(is_other).tolist())}. Export the model without preprocessing, and report this."
        )
    alone = file.run(torch.from_numpy(expected)).numpy().reshape(len(expected), -1)
    together = scores.reshape(len(expected), -1)
    moved = decision.decide(torch.from_numpy(alone)).numpy() != decision.decide(torch.from_numpy(together)).numpy()
    if moved.any():
        warnings.warn(
            f"The file decides {int(moved.sum())} of {len(moved)} people otherwise than the encoder followed by the model, because its "
            "inputs or columns round differently.",
            DataWarning,
            stacklevel=5,
        )


def _is_near_edge(encoder: Any, people: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return the rows with a number within one float32 step of the edge of a bin."""
    from cfptq.actions.scikit_learn import trace_encoder

    _, traced = trace_encoder(encoder)
    near = np.zeros(len(people), dtype=bool)
    for column in traced:
        if column.edges:
            values = pd.to_numeric(people[column.feature]).to_numpy(dtype=np.float64, na_value=np.nan)
            for edge in column.edges:
                near |= np.abs(values - edge) <= float(np.spacing(np.float32(abs(edge))))
    return cast(npt.NDArray[np.bool_], near)
