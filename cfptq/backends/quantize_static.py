"""Hand-over of a plan to ONNX Runtime's ``quantize_static``, and its default quantization.

Given a plan, ``quantize_static`` stores every weight as INT8, whatever its width. It has no weight-only layers. A layer whose input
stays in float, or is in two steps, stays in float32 with its weights on the plan's grid.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from cfptq.backends.onnxruntime import PREPARED_FOR
from cfptq.errors import FileError, ModelError
from cfptq.io.atomic import atomic_write
from cfptq.network import Network, find_layer_nodes, to_onnx_model
from cfptq.quantize import QuantizationPlan, quantize_weights


class RowReader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration rows for ``quantize_static``, batch by batch, so that one batch bounds the memory.

    Args:
        rows: (N, ...) float32.
        input_name: name of the ONNX model's input.
        batch: rows a batch.
    """

    def __init__(self, rows: torch.Tensor, input_name: str = "input", batch: int = 256) -> None:
        self.rows = rows
        self.input_name = input_name
        self.batch = batch
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first row."""
        self.batches = iter(range(0, len(self.rows), self.batch))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return the next batch by input name, or None after the last."""
        start = next(self.batches, None)
        return None if start is None else {self.input_name: self.rows[start : start + self.batch].numpy()}


def build_quantize_static_arguments(network: Network, plan: QuantizationPlan, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Build the keywords that make ``quantize_static`` store the plan's integers, scales and zero points.

    Use them as ``quantize_static(path, out, reader, **keywords)``.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan.
        path: the prepared model as ONNX, written by ``result.prepared_onnx``.

    Raises:
        ModelError: the file holds another model.
        FileError: the file cannot be read.
    """
    model = _read_prepared_file(network, plan, path)
    overrides: dict[str, list[dict[str, Any]]] = {}
    nodes, in_float = [], []
    for name, found in find_layer_nodes(model, network).items():
        layer = next(layer for layer in plan.layers if layer.name == name)
        form = plan.input_format(layer)
        if not form.is_affine:
            in_float.append(name)
            continue
        nodes.append(found.node_name)
        kind = {8: QuantType.QUInt8, 16: QuantType.QUInt16}[form.bits]
        step, zero = np.float32(form.scale), np.array(form.zero_point)
        overrides[found.input_tensor] = [{"quant_type": kind, "scale": np.array(step), "zero_point": zero}]
        overrides[found.weight_name] = [
            {"quant_type": QuantType.QInt8, "axis": 0, "scale": np.array(scale), "zero_point": np.array(0), "symmetric": True}
            for scale in layer.scale.numpy()
        ]
    if in_float:
        warnings.warn(
            f"quantize_static leaves {', '.join(in_float)} in float32, on the plan's grid, because it has no weight-only layers and their "
            "input is float or in two steps. Calibrate with input_bits=8, or write the file with result.to_onnx().",
            stacklevel=3,
        )
    return {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "nodes_to_quantize": nodes,
        "extra_options": {
            "TensorQuantOverrides": overrides,
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            # A layer's output is rounded only where the next layer takes it.
            "OpTypesToExcludeOutputQuantization": ["Gemm", "Conv"],
        },
    }


def _read_prepared_file(network: Network, plan: QuantizationPlan, path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read the plan's prepared model, and refuse any other."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own errors have no common base
        raise FileError(f"{path} cannot be read as ONNX ({error}). Write it with result.prepared_onnx().") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    ready = quantize_weights(network, plan)
    is_same = all(np.array_equal(weights.get(layer.weight, ()), ready.weight(layer.name).numpy()) for layer in network.layers)
    if metadata.get(PREPARED_FOR) != plan.digest or not is_same:
        raise ModelError(f"{path} is not this plan's prepared model. Write it with result.prepared_onnx(), and quantize it unchanged.")
    return model


def quantize_by_default(network: Network, rows: torch.Tensor) -> onnx.ModelProto:
    """Quantize ``network`` to int8 with the settings that ONNX Runtime's documentation recommends for x86.

    Args:
        network: the full-precision network.
        rows: calibration rows, ``(N, ...)`` float32.
    """
    return _quantize_in_scratch(network, rows, 8)


def quantize_to_int4_by_default(network: Network, rows: torch.Tensor) -> onnx.ModelProto:
    """Quantize ``network`` as ``quantize_by_default`` does, with 4-bit weights.

    Args:
        network: the full-precision network.
        rows: calibration rows, ``(N, ...)`` float32.
    """
    return _quantize_in_scratch(network, rows, 4)


def _quantize_in_scratch(network: Network, rows: torch.Tensor, bits: int) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "quantized.onnx"
        quantize_onnx_by_default(to_onnx_model(network), rows, bits, path)
        return onnx.load(path)


def quantize_onnx_by_default(float_model: onnx.ModelProto, rows: torch.Tensor, bits: int, path: str | os.PathLike[str]) -> None:
    """Quantize an ONNX model with ``quantize_static`` and write the result to a file.

    Weights are symmetric with one scale a channel. Activations are unsigned 8-bit, and their ranges are the minimum and maximum over
    ``rows``. ONNX Runtime's documentation recommends these settings for x86.

    Args:
        float_model: opset 21 or later for 4-bit weights.
        rows: calibration rows, ``(N, ...)`` float32.
        bits: weight bits, 8 or 4.
        path: the file to write.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}.")
    extra: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": False}
    if bits == 4:
        axes = _find_channel_axes(float_model)
        weights = {tensor.name: tensor for tensor in float_model.graph.initializer if len(tensor.dims) >= 2}
        extra["TensorQuantOverrides"] = {
            name: [{"quant_type": QuantType.QInt4, "symmetric": True, "axis": axes[name]}] for name in weights if name in axes
        }
    with atomic_write(path) as aside, tempfile.TemporaryDirectory() as scratch, _silence_quantizer():
        source = Path(scratch) / "float.onnx"
        onnx.save(float_model, source)
        quantize_static(
            str(source),
            str(aside),
            RowReader(rows, float_model.graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=extra,
        )


def _find_channel_axes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the axis of each weight that counts output channels, by the weight's name."""
    axes = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            axes[node.input[1]] = 0
        elif node.op_type == "Gemm":
            transposed = any(attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute)
            axes[node.input[1]] = 0 if transposed else 1
        elif node.op_type == "MatMul":
            axes[node.input[1]] = 1
    return axes


@contextlib.contextmanager
def _silence_quantizer() -> Iterator[None]:
    """Keep the quantizer's advice on pre-processing from the user's terminal, because our export needs none."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
