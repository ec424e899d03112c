"""Comparison of a written file with its plan, rounding by rounding.

Where a value lies in the middle between two integers, float rounding decides which one a program takes. A tie in a hidden tensor can move
the logits of every row, although the file and the plan compute the same function. Here the plan is computed from the integers that the
file itself takes. Then each rounding follows from those before it, and so do the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from cfptq.backends.onnxruntime import OPSET, OPSET_INT2, find_stored_channels, order_for_file, read_integers
from cfptq.network import Network
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.interface import INNER
from cfptq.quantize import FINE_ZERO_POINT, ActivationFormat, QuantizationPlan
from cfptq.quantize.fake_quantized import FakeQuantize, insert_fake_quantization

#: Largest error of float arithmetic in a hidden tensor, as a share of its range. A value farther from the middle is no tie.
FLOAT_ERROR = 1e-5


@dataclass(frozen=True)
class Replay:
    """A plan, computed from the integers that a file takes.

    Attributes:
        output: raw output of the plan on those integers.
        file_output: raw output of the file in the same run, as float32.
        follows: (N,) True for rows whose every integer follows from those before it, as nearest rounding or as a tie.
    """

    output: Tensor
    file_output: Tensor
    follows: Tensor


def replay_roundings(model: onnx.ModelProto, network: Network, plan: QuantizationPlan, rows: Tensor) -> Replay | None:
    """Compute a plan's output from the integers that a file takes for its hidden tensors.

    Args:
        model: the file's content.
        network: the captured full-precision network.
        plan: the plan that the file was written from.
        rows: (N, ...) rows of the shape that the network takes.

    Returns:
        The outputs and the rows that follow, or None where the file does not hold the plan's integers in a form that can be read.
    """
    channels = _find_stored_channels(model, network, plan)
    steps = None if channels is None else _find_quantized_tensors(model, plan)
    if channels is None or steps is None:
        return None
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {value.name for value in exposed.graph.output}
    names = sorted({name for tensors in steps.values() for name in tensors} - known)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    file = OnnxFile(exposed)
    values = file.run_tensors(rows, [file.output, *(name for tensors in steps.values() for name in tensors)])
    follows = torch.ones(len(rows), dtype=torch.bool)
    twin = insert_fake_quantization(network, plan.layers, {form.tensor: form for form in plan.activations})
    held = {layer.input: (channels[layer.name], -1 if layer.kind == "linear" else 1) for layer in plan.layers if layer.name in channels}
    for name, module in list(twin.named_modules()):
        if isinstance(module, FakeQuantize):
            tensor = module.form.tensor
            twin.add_submodule(name, _ReplayedRounding(module.form, [values[step] for step in steps[tensor]], follows, held.get(tensor)))
    with torch.no_grad():
        output = twin(rows)
    return Replay(output, torch.from_numpy(values[file.output].astype(np.float32)), follows)


class _ReplayedRounding(nn.Module):
    """Activation quantizer that takes a file's integers, and notes the rows whose integers do not follow from its input.

    Args:
        form: format of the tensor.
        integers: the file's integers, one array for each step.
        follows: (N,) set to False for rows that do not follow.
        held: channels that the file holds, in its order, and their axis, or None where it holds the tensor as it is. No layer reads others.
    """

    def __init__(
        self, form: ActivationFormat, integers: Sequence[npt.NDArray[Any]], follows: Tensor, held: tuple[Sequence[int], int] | None
    ) -> None:
        super().__init__()
        self.form, self.integers, self.follows, self.held = form, integers, follows, held

    def forward(self, x: Tensor) -> Tensor:
        """Return the dequantized integers of the file, and 0 in dropped channels."""
        if self.held is None:
            return self._take(x)
        channels, axis = torch.tensor(self.held[0]), self.held[1]
        return torch.zeros_like(x).index_copy(axis, channels, self._take(x.index_select(axis, channels)))

    def _take(self, x: Tensor) -> Tensor:
        error = FLOAT_ERROR * self.form.scale * self.form.highest
        scales = [self.form.scale] if self.form.fine_scale is None else [self.form.scale, self.form.fine_scale]
        total = torch.zeros_like(x)
        for scale, zero, integers in zip(scales, (self.form.zero_point, FINE_ZERO_POINT), self.integers, strict=False):
            taken = torch.from_numpy(integers.astype(np.float32)).reshape(x.shape)
            exact = ((x - total).double() / scale + zero).clamp(0, self.form.highest)
            is_right = (exact - taken).abs() <= 0.5 + error / scale
            is_by_row = x.shape[:1] == self.follows.shape
            self.follows &= is_right.reshape(len(x), -1).all(dim=1) if is_by_row else is_right.all()
            total = total + (taken - zero) * scale
        return total


def _find_stored_channels(model: onnx.ModelProto, network: Network, plan: QuantizationPlan) -> Mapping[str, Sequence[int]] | None:
    """Return the hidden channels that the file holds in another order, by layer, or None where it holds other integers."""
    if _holds(model, plan):
        return {}
    for opset in (OPSET, OPSET_INT2):
        if _holds(model, order_for_file(network, plan, opset)):
            return find_stored_channels(network, plan, opset)
    return None


def _holds(model: onnx.ModelProto, plan: QuantizationPlan) -> bool:
    """Tell whether a file holds exactly a plan's integers."""
    try:
        return all(np.array_equal(read_integers(model, layer.name), layer.integers.numpy()) for layer in plan.layers)
    except Exception:  # A file for other kernels stores its weights otherwise.
        return False


def _find_quantized_tensors(model: onnx.ModelProto, plan: QuantizationPlan) -> Mapping[str, tuple[str, ...]] | None:
    """Return the names of each activation's integers, coarse before fine, by the node that is rounded."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, tuple[str, ...]] = {}
    for layer in plan.layers:
        form = plan.input_format(layer)
        if form.is_float:
            continue
        grid = f"{layer.name}.weight_grid"
        inputs = [node.input[0] for node in model.graph.node if len(node.input) > 1 and node.input[1] in (grid, f"{grid}{INNER}")]
        tensors = tuple(makers[name].input[0] for name in inputs if name in makers and makers[name].op_type == "DequantizeLinear")
        if len(tensors) != (1 if form.fine_scale is None else 2):
            return None
        found[form.tensor] = tensors
    return found
