"""Comparison of our reading of an ONNX file with ONNX Runtime's own run of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from cfptq.errors import CfptqError, ModelError
from cfptq.network.onnx.file import INPUT_TYPES, OnnxFile, find_rows_input, summarize_error
from cfptq.network.onnx.module import OnnxModule

#: Rows drawn beside the given ones, and the seed that they are drawn by.
DRAWN_ROWS, SEED = 64, 0
#: Rows that are also run alone, and the number of them that may differ from the run in one batch, because of rounding ties.
ROWS_ALONE, MAX_ROWS_OF_TIES = 16, 2
#: Rows on which the first operator that differs is searched.
TRACED_ROWS = 64
#: Largest difference, as a share of the largest output (or of 1), and that of files that compute in half precision.
RELATIVE_TOLERANCE, RELATIVE_TOLERANCE_OF_HALVES = 1e-4, 2e-2
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
#: Operators with jumps. Float rounding may put a row on the other side of one, so that a few rows may differ.
JUMPS = frozenset(
    (
        *("ArgMax", "ArgMin", "Binarizer", "Cast", "CastLike", "Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater"),
        *("GreaterOrEqual", "Hardmax", "LabelEncoder", "Less", "LessOrEqual", "Mod", "OneHot", "OneHotEncoder", "QuantizeLinear", "Round"),
        *("Shrink", "Sign", "ThresholdedRelu", "TopK", "Where"),
    )
)
#: Largest share of rows that may differ in a graph with jumps.
MAX_SHARE_AT_JUMPS = 0.005


def check_reading(module: OnnxModule, rows: Tensor) -> None:
    """Check that a module computes what ONNX Runtime computes for the file that it was read from.

    Args:
        module: our reading of the file.
        rows: ``(N, ...)`` float32 rows that the model is meant for. A few more are drawn from them.

    Raises:
        ModelError: the file cannot be run, its answers depend on the other rows of a batch, or the module differs from it. The
            message names the first operator whose value differs.
    """
    file = OnnxFile(module.source.model, output=module.output_name, where=module.source.where)
    tried, expected = _run_file(file, rows)
    _check_batch_independence(file, tried, expected)
    tolerance = RELATIVE_TOLERANCE_OF_HALVES if _has_halves(module.source.model) else RELATIVE_TOLERANCE
    try:
        with torch.no_grad():
            answer = module(tried)
    except Exception as error:
        raise ModelError(
            f"{file.where} must take any number of rows at a time, but our reading of it fails on a batch of {len(tried)} rows "
            f"({summarize_error(error)}). Export it with a dynamic batch dimension, and without the number of rows in its shapes."
        ) from error
    if answer.shape != expected.shape:
        raise ModelError(_describe_difference(module, file, tried[:TRACED_ROWS], tolerance))
    is_off = _measure(answer, expected) > tolerance
    allowed = MAX_SHARE_AT_JUMPS * len(tried) if any(node.op_type in JUMPS for node in module.source.model.graph.node) else 0
    if int(is_off.sum()) > allowed:
        raise ModelError(_describe_difference(module, file, tried[is_off][:TRACED_ROWS], tolerance))


def draw_rows_between(rows: Tensor, count: int = DRAWN_ROWS) -> Tensor:
    """Draw rows whose columns come from several given rows each, and rows halfway between two given ones.

    Args:
        rows: ``(N, ...)``.
        count: number of rows to draw.
    """
    generator = torch.Generator().manual_seed(SEED)
    flat = rows.flatten(1)
    chosen = torch.randint(len(flat), (count, flat.shape[1]), generator=generator)
    mixed = flat.gather(0, chosen)
    pairs = torch.randint(len(flat), (2, count // 2), generator=generator)
    mixed[: count // 2] = (flat[pairs[0]] + flat[pairs[1]]) / 2
    return mixed.reshape(count, *rows.shape[1:])


def _run_file(file: OnnxFile, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Run the file on the given rows and on drawn ones, and return the rows that it takes with its answers."""
    expected = file.run(rows)
    drawn = draw_rows_between(rows)
    try:
        answers = file.run(drawn)
    except CfptqError:
        return rows, expected  # Encoders of categories fail on a code between two categories.
    if answers.dim() == 0 or expected.dim() == 0 or answers.shape[1:] != expected.shape[1:]:
        raise ModelError(
            f"{file.where} must return one row of scores for each row, got the shape {list(expected.shape)} for {len(rows)} rows and "
            f"{list(answers.shape)} for {len(drawn)}. Export the scores with the batch as their first dimension."
        )
    return torch.cat((rows, drawn)), torch.cat((expected, answers))


def _check_batch_independence(file: OnnxFile, rows: Tensor, expected: Tensor) -> None:
    """Raise a ModelError if rows alone get other answers than in their batch."""
    if expected.dim() == 0 or len(expected) != len(rows):
        raise ModelError(
            f"{file.where} must return one answer a row, got the shape {list(expected.shape)} for {len(rows)} rows. Export it again."
        )
    places = torch.linspace(0, len(rows) - 1, min(ROWS_ALONE, len(rows))).round().long()
    answers = [file.run(rows[place : place + 1]) for place in places.tolist()]
    if any(answer.shape != (1, *expected.shape[1:]) for answer in answers):
        raise ModelError(
            f"{file.where} must return one answer a row, got the shape {list(answers[0].shape)} for one row and {list(expected.shape)} for "
            f"{len(rows)} rows. Export it with the batch as the first dimension."
        )
    alone = torch.cat(answers)
    tolerance = RELATIVE_TOLERANCE_OF_HALVES if _has_halves(file.model) else RELATIVE_TOLERANCE
    if int((_measure(alone, expected[places]) > tolerance).sum()) > min(MAX_ROWS_OF_TIES, len(places) - 1):
        reason = find_batch_dependence(file.model)
        raise ModelError(
            f"{file.where} must answer for each row alone, but its answers depend on the other rows of a batch{reason}. "
            "Export it in evaluation mode and without dynamic quantization."
        )


def find_batch_dependence(model: onnx.ModelProto) -> str:
    """Return a clause that names an operator which mixes the rows of a batch, or "" where none is known."""
    for node in model.graph.node:
        in_training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type.startswith("Dynamic") or in_training:
            return f" ({node.op_type} uses all of them)"
    return ""


def _has_halves(model: onnx.ModelProto) -> bool:
    kinds = {tensor.data_type for tensor in model.graph.initializer} | {find_rows_input(model).type.tensor_type.elem_type}
    return bool(kinds & set(HALVES))


def _measure(answer: Tensor, expected: Tensor) -> Tensor:
    """Return each row's largest difference as a share of the largest expected value, at least 1, infinite where NaN or inf differ."""
    a, b = answer.reshape(len(answer), -1).double(), expected.reshape(len(expected), -1).double()
    if a.shape[1] == 0:
        return torch.zeros(len(a))
    scale = torch.where(torch.isfinite(b), b.abs(), torch.zeros_like(b)).max().clamp_min(1)
    is_same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    off = torch.where(is_same, torch.zeros_like(a), (a - b).abs() / scale)
    return torch.where(torch.isnan(off), torch.full_like(off, torch.inf), off).amax(dim=1)


def _describe_difference(module: OnnxModule, file: OnnxFile, rows: Tensor, tolerance: float) -> str:
    """Return the message of a difference, which names the first operator whose value differs."""
    found = _find_first_difference(module, file, rows, tolerance)
    element = find_rows_input(module.source.model).type.tensor_type.elem_type
    precision = " The file computes in float64 and cfptq in float32." if element == TensorProto.DOUBLE else ""
    if found is None:
        operators = ", ".join(dict.fromkeys(node.op_type for node in module.source.model.graph.node))
        return f"Our reading of {file.where} must give the answers of ONNX Runtime, and does not. Its operators are {operators}.{precision}"
    node, off = found
    return (
        f"Our reading of {file.where} must give the answers of ONNX Runtime, but {node.op_type} differs first (node "
        f"{node.name or node.output[0]!r}, by {off:.3g} of its largest value).{precision} Export the model without that operator, "
        "or pass the nn.Module."
    )


def _find_first_difference(module: OnnxModule, file: OnnxFile, rows: Tensor, tolerance: float) -> tuple[onnx.NodeProto, float] | None:
    """Return the first node whose output differs between module and file, with the difference, or None where none is found."""
    try:
        ours = module.trace(rows)
        theirs = _trace_file(file, rows, list(ours))
    except Exception:
        return None
    for node in file.model.graph.node:
        for name in node.output:
            if name not in theirs or name not in ours:
                continue
            answer, expected = ours[name].to(torch.float32), torch.from_numpy(theirs[name].astype(np.float32))
            if answer.numel() != expected.numel():
                return node, float("inf")
            off = float(_measure(answer.reshape(1, -1), expected.reshape(1, -1)).max())
            if off > tolerance:
                return node, off
    return None


def _trace_file(file: OnnxFile, rows: Tensor, names: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Run the file without graph optimizations and return the values of the tensors ``names``."""
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    made = {name for node in model.graph.node for name in node.output if node.op_type != "ZipMap"}
    given = {value.name for value in model.graph.output}
    wanted = [name for name in names if name in made]
    for name in wanted:
        if name not in given:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    values = session.run(wanted, {first.name: rows.numpy().astype(INPUT_TYPES[first.type])})
    return dict(zip(wanted, values, strict=True))
