"""ONNX Runtime's own post-training quantization, as its documentation has it: the peer that users have today."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from cfptq.files import written_aside


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
    with written_aside(path) as aside, tempfile.TemporaryDirectory() as scratch, _quiet():
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
