"""ONNX Runtime: a plan as a QDQ model whose weights are stored small and run as int8.

A weight of 2, 3 or 4 bits is an INT2 or INT4 initializer followed by ``Cast(to=INT8)`` and DequantizeLinear. ONNX Runtime
folds the Cast when it loads the file and runs its int8 kernel: the file is small, the speed is int8's, and the output is
bit for bit that of the same integers stored as INT8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cfptq.errors import ModelError
from cfptq.network import Network, OnnxLayer, find_layer_nodes
from cfptq.network import to_onnx_model as network_to_onnx
from cfptq.quantize import FINE_ZERO_POINT, ActivationFormat, LayerPlan, QuantizationPlan, check_matches, quantize_weights

#: Opset of the file: 21 brought INT4 and 16-bit activations, 25 INT2. Files for older runtimes go down to 18.
OPSET = 21
OPSET_INT2 = 25
OLDEST_OPSET = 18

#: Where a prepared model's file says which plan it was prepared for.
PREPARED_FOR = "cfptq.prepared_for"

#: The types that integers are stored in, narrowest first: bits, opset that brought it, numpy type of the initializer.
CONTAINERS: tuple[tuple[int, int, npt.DTypeLike], ...] = ((2, OPSET_INT2, ml_dtypes.int2), (4, OPSET, ml_dtypes.int4), (8, 0, np.int8))


def to_onnx_model(
    network: Network, plan: QuantizationPlan, metadata: Mapping[str, str] | None = None, *, packed: bool = True, opset: int = OPSET_INT2
) -> onnx.ModelProto:
    """``plan`` as an ONNX model: QDQ around every planned layer, the plan's integers inside, dynamic batch.

    Args:
        network: the captured full-precision network that the plan is for.
        metadata: further entries for the file's metadata.
        packed: store 2-, 3- and 4-bit weights in INT2 and INT4; False stores every weight as INT8, for runtimes that
            cannot read those types. The outputs are the same bit for bit.
        opset: the newest that the runtime reads. The file asks for no newer one than its integers need; integers that are too
            narrow for it are stored in the next wider type.

    Raises:
        ModelError: the plan was made for another network; an opset that is no whole number, or without what the plan needs.
    """
    check_matches(network, plan)
    model = network_to_onnx(network, opset=_opset(plan, packed, opset))
    editor = _Editor(model, plan, packed)
    for name, found in find_layer_nodes(model, network).items():
        if name in plan.bits:
            editor.plan_layer(found, next(layer for layer in plan.layers if layer.name == name))
    editor.finish()
    entries = {
        "cfptq.method": plan.method,
        "cfptq.bits": json.dumps(plan.bits, sort_keys=True),
        "cfptq.average_bits": f"{plan.average_bits:.4f}",
        "cfptq.activations": json.dumps({form.tensor: str(form) for form in plan.activations}),
        "cfptq.input_choice": plan.input_choice,
        "cfptq.seed": str(plan.seed),
        "cfptq.portable": str(plan.portable).lower(),
        "cfptq.plan": plan.digest,
        **(metadata or {}),
    }
    helper.set_model_props(model, entries)
    return model


def build_prepared_onnx_model(network: Network, plan: QuantizationPlan) -> onnx.ModelProto:
    """The prepared network (float32 weights on the plan's grid) as ONNX, for ONNX Runtime's own quantizer.

    That quantizer rounds a tensor for all who take it: one that others than planned layers take goes to these through an Identity.
    """
    model = network_to_onnx(quantize_weights(network, plan), opset=OPSET)
    layers = {found.node_name for name, found in find_layer_nodes(model, network).items() if name in plan.bits}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        tensor = node.input[0] if node.name in layers else ""
        others = [user for user in model.graph.node if tensor in user.input and user.name not in layers]
        if tensor and (others or any(tensor == output.name for output in model.graph.output)):
            apart = f"{tensor}_apart"
            if not any(apart in known.output for known in nodes):
                nodes.append(helper.make_node("Identity", [tensor], [apart], apart))
            node.input[0] = apart
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    helper.set_model_props(model, {PREPARED_FOR: plan.digest})
    return model


def read_integers(model: onnx.ModelProto, name: str) -> npt.NDArray[np.int8]:
    """The integers that a file written by :func:`to_onnx_model` holds for layer ``name``."""
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}.weight_integers":
            return numpy_helper.to_array(tensor).astype(np.int8)
    raise ModelError(f"this ONNX model holds no integers for a layer {name!r}; was it written by cfptq?")


def _opset(plan: QuantizationPlan, packed: bool, newest: int) -> int:
    """The oldest opset with all that the plan needs, at most ``newest``."""
    if not isinstance(newest, Integral):
        raise ModelError(f"opset is {newest!r}; give the newest that the runtime reads, a whole number from {OLDEST_OPSET}")
    if newest < OLDEST_OPSET:
        raise ModelError(f"opset {newest} is too old: files go down to opset {OLDEST_OPSET} (ONNX Runtime 1.14); upgrade the runtime")
    wide = [form.tensor for form in plan.activations if form.bits == 16 and form.is_affine]
    if wide and newest < OPSET:
        raise ModelError(
            f"opset {newest} has no 16-bit activations, and the plan has them for {', '.join(wide)}; calibrate with activation_bits=8 and "
            f"input_bits=8 or 32, or upgrade the runtime to opset {OPSET}"
        )
    return min(newest, OPSET_INT2 if packed and 2 in plan.bits.values() else OPSET)


def _container(bits: int, opset: int) -> npt.DTypeLike:
    """The narrowest type of ``opset`` that holds integers of ``bits``."""
    return next(kind for wide, since, kind in CONTAINERS if bits <= wide and since <= opset)


class _Editor:
    """Builds the quantized graph beside the float one: nodes in order, each layer's inputs replaced by dequantized ones."""

    def __init__(self, model: onnx.ModelProto, plan: QuantizationPlan, packed: bool) -> None:
        self.model = model
        self.plan = plan
        self.packed = packed
        self.added: dict[str, list[onnx.NodeProto]] = {}  # name of a float node -> nodes that must stand before it
        self.dequantized: dict[tuple[str, str], tuple[str, ...]] = {}  # (tensor, format) -> its dequantized names
        self.initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}

    def plan_layer(self, found: OnnxLayer, layer: LayerPlan) -> None:
        node = next(node for node in self.model.graph.node if node.name == found.node_name)
        before = self.added.setdefault(node.name, [])
        form = self.plan.input_format(layer)
        weight = self._weight(layer, form, before)
        biases = self._biases(layer, form, before)
        steps = self._activation(found.input_tensor, form, before)
        operands = [[step, weight, *biases[place : place + 1]] for place, step in enumerate(steps)]
        if len(steps) == 1:
            node.input[:] = operands[0]
        else:
            self._run_on_each(node, operands, before)

    def finish(self) -> None:
        graph = self.model.graph
        nodes = [node for own in graph.node for node in (*self.added.get(own.name, ()), own)]
        used = {name for node in nodes for name in node.input}
        del graph.node[:]
        graph.node.extend(nodes)
        kept = [tensor for name, tensor in self.initializers.items() if name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        onnx.checker.check_model(self.model)

    def _run_on_each(self, node: onnx.NodeProto, operands: Sequence[Sequence[str]], before: list[onnx.NodeProto]) -> None:
        """Make ``node`` the sum of what it gives for the coarse step of its input and for the fine one, with the same weights."""
        (output,) = node.output
        parts = [f"{output}_coarse", f"{output}_fine"]
        for part, inputs in zip(parts, operands, strict=True):
            half = onnx.NodeProto()
            half.CopyFrom(node)
            half.name, half.input[:], half.output[:] = part, inputs, [part]
            before.append(half)
        node.CopyFrom(helper.make_node("Add", parts, [output], node.name))

    def _store(self, name: str, values: npt.NDArray[Any]) -> str:
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _activation(self, tensor: str, form: ActivationFormat, before: list[onnx.NodeProto]) -> tuple[str, ...]:
        """Names of what stands for ``tensor``: one, or the coarse and the fine step of two."""
        if form.is_float:
            return (tensor,)
        key = (tensor, form.tensor)
        if key not in self.dequantized:
            kind = np.uint8 if form.feeds_integers else np.uint16
            steps = [self._rounded(tensor, form.scale, form.zero_point, kind, before)]
            if form.fine_scale is not None:
                left = f"{tensor}_left"
                before.append(helper.make_node("Sub", [tensor, steps[0]], [left], left))
                steps.append(self._rounded(left, form.fine_scale, FINE_ZERO_POINT, kind, before))
            self.dequantized[key] = tuple(steps)
        return self.dequantized[key]

    def _rounded(self, tensor: str, scale: float, zero_point: int, kind: npt.DTypeLike, before: list[onnx.NodeProto]) -> str:
        form = [
            self._store(f"{tensor}_scale", np.asarray(scale, np.float32)),
            self._store(f"{tensor}_zero_point", np.asarray(zero_point, kind)),
        ]
        names = f"{tensor}_quantized", f"{tensor}_dequantized"
        before.append(helper.make_node("QuantizeLinear", [tensor, *form], [names[0]], f"{tensor}_quantize"))
        before.append(helper.make_node("DequantizeLinear", [names[0], *form], [names[1]], f"{tensor}_dequantize"))
        return names[1]

    def _weight(self, layer: LayerPlan, form: ActivationFormat, before: list[onnx.NodeProto]) -> str:
        kind = _container(layer.bits if self.packed else 8, self.model.opset_import[0].version)
        name = self._store(f"{layer.name}.weight_integers", _array(layer.integers).astype(kind))
        if form.is_float:
            # Cast and Mul of constants are folded when the file is loaded, and the layer runs on float32 weights; a
            # DequantizeLinear would be kept and run at every call.
            scale = _array(layer.scale).reshape(-1, *[1] * (layer.integers.dim() - 1))
            before.append(helper.make_node("Cast", [name], [f"{layer.name}.weight_float"], f"{layer.name}_cast", to=TensorProto.FLOAT))
            self._store(f"{layer.name}.weight_scale", scale)
            before.append(
                helper.make_node(
                    "Mul",
                    [f"{layer.name}.weight_float", f"{layer.name}.weight_scale"],
                    [f"{layer.name}.weight_grid"],
                    f"{layer.name}_scale",
                )
            )
            return f"{layer.name}.weight_grid"
        if kind is not np.int8:
            before.append(helper.make_node("Cast", [name], [f"{layer.name}.weight_int8"], f"{layer.name}_cast", to=TensorProto.INT8))
            name = f"{layer.name}.weight_int8"
        scale_name = self._store(f"{layer.name}.weight_scale", _array(layer.scale))
        # Integer kernels want the zero points spelled out, though they are all 0.
        zero_name = self._store(f"{layer.name}.weight_zero_point", np.zeros(layer.scale.numel(), np.int8))
        return self._dequantize([name, scale_name, zero_name], f"{layer.name}.weight_grid", before)

    def _biases(self, layer: LayerPlan, form: ActivationFormat, before: list[onnx.NodeProto]) -> list[str]:
        """Names of the layer's bias: none, one, or one for each step of its input."""
        if layer.bias is None:
            return []
        names = []
        for place, (integers, step) in enumerate(layer.bias_integers(form)):
            ending = "_fine" if place else ""
            stored = [
                self._store(f"{layer.name}.bias_integers{ending}", _array(integers)),
                self._store(f"{layer.name}.bias_scale{ending}", _array(step)),
            ]
            names.append(self._dequantize(stored, f"{layer.name}.bias_grid{ending}", before))
        return names or [self._store(f"{layer.name}.bias_grid", _array(layer.bias))]

    def _dequantize(self, inputs: Sequence[str], output: str, before: list[onnx.NodeProto]) -> str:
        before.append(helper.make_node("DequantizeLinear", inputs, [output], f"{output}_dequantize", axis=0))
        return output


def _array(tensor: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return values
