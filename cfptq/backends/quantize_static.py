"""ONNX Runtime's own ``quantize_static``: handed a plan, and left to itself as the peer that users have today.

Handed a plan, it stores every weight as INT8, whatever its width, and has no layers that are quantized in their weight alone: a layer
whose input stays in float, or is in two steps, is left as it is, float32 on the plan's grid.
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
from cfptq.network import Network, find_layer_nodes
from cfptq.quantize import QuantizationPlan, prepared


class RowReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration rows to ``quantize_static`` in batches, so that memory stays bounded by the batch."""

    def __init__(self, rows: torch.Tensor, input_name: str = "input", batch: int = 256) -> None:
        self.rows = rows
        self.input_name = input_name
        self.batch = batch
        self.rewind()

    def rewind(self) -> None:
        """Start again from the first row."""
        self.batches = iter(range(0, len(self.rows), self.batch))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next batch by input name, or None when there is none."""
        start = next(self.batches, None)
        return None if start is None else {self.input_name: self.rows[start : start + self.batch].numpy()}


def quantize_static_arguments(network: Network, plan: QuantizationPlan, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keywords for ``quantize_static(path, out, reader, **keywords)`` that make it store the plan's integers, scales and zero points.

    Args:
        path: the prepared model as ONNX, written by ``result.prepared_onnx``.

    Raises:
        ModelError: the file holds another model.
        FileError: it cannot be read.
    """
    model = _prepared_file(network, plan, path)
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
            f"quantize_static leaves {', '.join(in_float)} in float32 (on the plan's grid): it has no weight-only layers, and their input "
            "is float or in two steps; calibrate with input_bits=8, or write the file with result.to_onnx()",
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
            # A layer's output is rounded where the next layer takes it, not before.
            "OpTypesToExcludeOutputQuantization": ["Gemm", "Conv"],
        },
    }


def _prepared_file(network: Network, plan: QuantizationPlan, path: str | os.PathLike[str]) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own errors have no common base
        raise FileError(f"cannot read {path} as ONNX ({error}); write it with result.prepared_onnx()") from error
    said = {entry.key: entry.value for entry in model.metadata_props}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    ready = prepared(network, plan)
    same = all(np.array_equal(weights.get(layer.weight, ()), ready.weight(layer.name).numpy()) for layer in network.layers)
    if said.get(PREPARED_FOR) != plan.digest or not same:
        raise ModelError(f"{path} is not this plan's prepared model; write that with result.prepared_onnx(), and quantize it unchanged")
    return model


def vanilla_onnx(float_model: onnx.ModelProto, rows: torch.Tensor, bits: int, path: str | os.PathLike[str]) -> None:
    """Write what ``quantize_static`` makes of ``float_model`` (opset 21) at 8 or 4 weight bits, calibrated on ``rows`` by min and max.

    Weights per channel and symmetric, activations unsigned 8-bit: the settings its documentation recommends for x86.
    """
    weights = {tensor.name: tensor for tensor in float_model.graph.initializer if len(tensor.dims) >= 2}
    extra: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": False}
    if bits == 4:
        axes = _channel_axes(float_model)
        extra["TensorQuantOverrides"] = {
            name: [{"quant_type": QuantType.QInt4, "symmetric": True, "axis": axes[name]}] for name in weights if name in axes
        }
    elif bits != 8:
        raise ValueError(f"quantize_static has no {bits}-bit weights")
    with atomic_write(path) as aside, tempfile.TemporaryDirectory() as scratch, _quiet():
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


def _channel_axes(model: onnx.ModelProto) -> dict[str, int]:
    """The axis of each weight that counts output channels."""
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
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice on pre-processing out of the user's terminal; the export needs none."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
