"""Export of a plan to ONNX Runtime as a QDQ model with packed weights.

A weight of 2, 3 or 4 bits is an INT2 or INT4 initializer followed by ``Cast(to=INT8)`` and DequantizeLinear. ONNX Runtime folds the Cast
when it loads the file and runs its int8 kernel. The file is small and as fast as int8. With the same ONNX Runtime on the same machine, the
output equals bit for bit that of the same integers stored as INT8.

Output channels of different widths are stored apart, or all layers in one stream of bits, as ``cfptq.quantize.storage`` says. Nodes that
are folded likewise put them together. Hidden channels stand in the order of their containers, and the columns that they feed too. Other
layers have a permutation. A stream has neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cfptq.backends.bit_stream import StreamBuilder
from cfptq.backends.packing import Unpacker
from cfptq.errors import ModelError
from cfptq.network import Network, OnnxLayer, find_layer_nodes
from cfptq.network import to_onnx_model as network_to_onnx
from cfptq.network.onnx.session import open_session
from cfptq.quantize import (
    FINE_ZERO_POINT,
    ActivationFormat,
    LayerPlan,
    QuantizationPlan,
    average_bits,
    check_matches,
    find_sortable_layers,
    quantize_weights,
    sort_channels,
)
from cfptq.quantize.split_inputs import COARSE_STEP, split_bits
from cfptq.quantize.storage import ChannelGroup, group_channels, is_streamed

#: Form of the weights in a file.
Storage = Literal["packed", "plain"]

#: Opset 21 introduced INT4 and 16-bit activations, and opset 25 INT2. Files for older runtimes go down to opset 18.
OPSET = 21
OPSET_INT2 = 25
OLDEST_OPSET = 18

#: Metadata key of the digest of the plan that a file was prepared for.
PREPARED_FOR = "cfptq.prepared_for"

#: Storage types of integers, narrowest first, as (bits, opset that introduced the type, numpy type of the initializer).
CONTAINERS: tuple[tuple[int, int, npt.DTypeLike], ...] = ((2, OPSET_INT2, ml_dtypes.int2), (4, OPSET, ml_dtypes.int4), (8, 0, np.int8))


def to_onnx_model(
    network: Network,
    plan: QuantizationPlan,
    metadata: Mapping[str, str] | None = None,
    *,
    storage: Storage = "packed",
    opset: int = OPSET_INT2,
) -> onnx.ModelProto:
    """Build the QDQ model that holds the plan's integers and has a dynamic batch.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan.
        metadata: further entries for the file's metadata.
        storage: "packed" stores narrow weights in INT2 and INT4, and channels of other widths in parts. "plain" stores every weight as
            INT8, for runtimes that cannot read those types or do not fold. On the same machine and runtime, both give the same output bit
            for bit.
        opset: the newest opset that the runtime reads. The file needs no newer opset than its integers do. Integers too narrow for
            ``opset`` are stored in the next wider type.

    Raises:
        ModelError: the plan was made for another network, or ``opset`` is not a whole number or lacks a type that the plan needs.
    """
    check_matches(network, plan)
    is_packed = storage == "packed"
    newest = _choose_opset(plan, is_packed, opset)
    stored = order_for_file(network, plan, newest) if is_packed else plan
    model = network_to_onnx(network, opset=newest)
    editor = _QdqEditor(model, stored, is_packed)
    if is_packed and _is_streamed(plan):
        editor.add_stream()
    for name, found in find_layer_nodes(model, network).items():
        if name in plan.bits:
            editor.quantize_layer(found, next(layer for layer in stored.layers if layer.name == name))
    editor.finish()
    entries = {
        "cfptq.method": plan.method,
        "cfptq.bits": json.dumps({layer.name: round(average_bits(layer.bits), 2) for layer in plan.layers}, sort_keys=True),
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


def order_for_file(network: Network, plan: QuantizationPlan, opset: int = OPSET_INT2) -> QuantizationPlan:
    """Return a plan with its hidden channels in the order in which a packed file holds them.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan. One with a width for each layer is returned as it is.
        opset: the newest opset that the runtime reads.
    """
    if plan.granularity == "layer":
        return plan
    types = None if _is_streamed(plan) else _list_types(opset)
    return sort_channels(network, plan, lambda layer: _order_channels(layer, types))


def find_stored_channels(network: Network, plan: QuantizationPlan, opset: int = OPSET_INT2) -> dict[str, list[int]]:
    """Find the hidden channels that a packed file holds, in its order, by the name of the layer that takes them.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan. One with a width for each layer is stored as it is.
        opset: the newest opset that the runtime reads.
    """
    if plan.granularity == "layer":
        return {}
    layers, types = {layer.name: layer for layer in plan.layers}, None if _is_streamed(plan) else _list_types(opset)
    pairs = find_sortable_layers(network).items()
    return {consumer: _order_channels(layers[producer], types) for producer, consumer in pairs if layers[producer].is_sortable}


def _is_streamed(plan: QuantizationPlan) -> bool:
    """Return True if a packed file holds the plan's integers in one stream of bits."""
    return is_streamed([layer.stored for layer in plan.layers])


def _order_channels(layer: LayerPlan, types: Sequence[int] | None) -> list[int]:
    """Return the channels of a sortable layer in the order of its file, without dropped ones. A stream has no types of containers."""
    if types is None:
        return [place for place, width in enumerate(layer.channel_bits) if width]
    if layer.fine_inputs:
        # Both halves of the columns have their containers in this order.
        return [place for width, place in sorted(zip(layer.channel_bits, range(len(layer.scale)), strict=True)) if width]
    return [channel for group in _group(layer, types) for channel in group.channels]


def build_prepared_onnx_model(network: Network, plan: QuantizationPlan) -> onnx.ModelProto:
    """Build the prepared model as ONNX, with float32 weights on the plan's grid, for ONNX Runtime's own quantizer.

    That quantizer rounds a tensor for all nodes that take it. Where other nodes take it too, planned layers take it through an Identity.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan.
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
    """Return the integers that a file written by ``to_onnx_model`` holds for one layer, in the file's order of channels.

    Args:
        model: the file's content.
        name: the layer's name.

    Raises:
        ModelError: the file holds no integers for the layer.
    """
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}.weight_integers":
            return numpy_helper.to_array(tensor).astype(np.int8)
    unpacked = _find_unpacked(model, name)
    if unpacked is None:
        raise ModelError(f"The ONNX model holds no integers for layer {name!r}. Pass a model that result.to_onnx() wrote.")
    needed = {unpacked}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.insert(0, node)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    taken = "integers_taken"
    nodes.append(helper.make_node("Cast", [unpacked], [taken], to=TensorProto.INT8))
    output = helper.make_tensor_value_info(taken, TensorProto.INT8, None)
    part = helper.make_model(
        helper.make_graph(nodes, "unpacking", [], [output], constants), opset_imports=model.opset_import, ir_version=model.ir_version
    )
    (integers,) = open_session(part.SerializeToString()).run(None, {})
    found: npt.NDArray[np.int8] = integers
    return found


def _find_unpacked(model: onnx.ModelProto, name: str) -> str | None:
    """Return the tensor that holds a layer's unpacked integers, which its DequantizeLinear or its cast to float takes."""
    for node in model.graph.node:
        if node.output[0] in (f"{name}.weight_grid", f"{name}.weight_float"):
            return str(node.input[0])
    return None


def _choose_opset(plan: QuantizationPlan, packed: bool, newest: int) -> int:
    """Return the oldest opset, at most ``newest``, that has every type the plan needs."""
    if not isinstance(newest, Integral):
        raise ModelError(f"opset must be a whole number from {OLDEST_OPSET}, got {newest!r}. Give the newest opset that the runtime reads.")
    if newest < OLDEST_OPSET:
        raise ModelError(f"opset must be at least {OLDEST_OPSET} (ONNX Runtime 1.14), got {newest}. Upgrade the runtime.")
    wide = [form.tensor for form in plan.activations if form.bits == 16 and form.is_affine]
    if wide and newest < OPSET:
        raise ModelError(
            f"opset {newest} has no 16-bit activations, and the plan has them for {', '.join(wide)}. Calibrate with activation_bits=8 and "
            f"input_bits=8 or 32, or upgrade the runtime to opset {OPSET}."
        )
    needs_int2 = packed and not _is_streamed(plan) and any(_needs_int2(layer, newest) for layer in plan.layers)
    return min(newest, OPSET_INT2 if needs_int2 else OPSET)


def _needs_int2(layer: LayerPlan, newest: int) -> bool:
    """Return True if a file of opset ``newest`` stores some of the layer's integers, or parts of them, in INT2 or UINT2."""
    if isinstance(layer.bits, int):
        return layer.bits == 2
    types = _list_types(newest)
    halves = _group_halves(layer, types) if layer.fine_inputs else (_group(layer, types),)
    return newest >= OPSET_INT2 and any(2 in (group.container.high, *group.container.low) for groups in halves for group in groups)


def _list_types(opset: int) -> tuple[int, ...]:
    """Return the bits of the integer types of an opset."""
    return tuple(wide for wide, since, _ in CONTAINERS if since <= opset)


def _group(layer: LayerPlan, types: Sequence[int]) -> tuple[ChannelGroup, ...]:
    """Return the channels of each container of a layer, in a file with some integer types."""
    return group_channels(layer.channel_bits, layer.parameters // len(layer.scale), layer.is_sortable, types)


def _group_halves(layer: LayerPlan, types: Sequence[int]) -> tuple[tuple[ChannelGroup, ...], tuple[ChannelGroup, ...]]:
    """Return the channels of each container of a split layer's fine columns, and of its coarse columns."""
    fine, coarse = split_bits(layer.channel_bits)
    columns = sum(layer.fine_inputs)
    return (
        group_channels(fine, columns, layer.is_sortable, types),
        group_channels(coarse, len(layer.fine_inputs) - columns, layer.is_sortable, types),
    )


def _choose_container(bits: int, opset: int) -> npt.DTypeLike:
    """Return the narrowest type of ``opset`` that holds integers of ``bits``."""
    return next(kind for wide, since, kind in CONTAINERS if bits <= wide and since <= opset)


class _QdqEditor:
    """Editor that replaces the inputs of planned layers in a float graph by dequantized tensors."""

    def __init__(self, model: onnx.ModelProto, plan: QuantizationPlan, packed: bool) -> None:
        self.model = model
        self.plan = plan
        self.packed = packed
        self.initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.taken = {value.name for value in (*model.graph.input, *model.graph.output)} | set(self.initializers)
        self.taken |= {name for node in model.graph.node for name in node.output}
        self.unpacker = Unpacker(self._store, model.opset_import[0].version >= OPSET_INT2, self.taken)
        self.streamed: dict[str, str] = {}  # name of a layer -> its integers from the stream
        self.stream_nodes: list[onnx.NodeProto] = []
        self.added: dict[str, list[onnx.NodeProto]] = {}  # name of a float node -> nodes to insert before it
        self.dequantized: dict[tuple[str, str], tuple[str, ...]] = {}  # (tensor, format) -> names of the dequantized tensors

    def add_stream(self) -> None:
        """Store the integers of all layers in one stream of bits."""
        builder = StreamBuilder(self._store, self.model.opset_import[0].version >= OPSET, self.taken)
        float_layers = [layer.name for layer in self.plan.layers if self.plan.input_format(layer).is_float]
        self.streamed, self.stream_nodes = builder.build(self.plan.layers, float_layers)

    def quantize_layer(self, found: OnnxLayer, layer: LayerPlan) -> None:
        """Quantize the weight, bias and input of one layer."""
        node = next(node for node in self.model.graph.node if node.name == found.node_name)
        before = self.added.setdefault(node.name, [])
        form = self.plan.input_format(layer)
        weight = self._add_weight(layer, form, before)
        biases = self._add_biases(layer, form, before)
        steps = self._add_activation(found.input_tensor, form, before)
        operands = [[step, weight, *biases[place : place + 1]] for place, step in enumerate(steps)]
        if len(steps) == 1:
            node.input[:] = operands[0]
        else:
            self._sum_over_steps(node, operands, before)

    def finish(self) -> None:
        """Write the new nodes and the initializers in use into the model, and check it."""
        graph = self.model.graph
        nodes = [*self.stream_nodes, *(node for own in graph.node for node in (*self.added.get(own.name, ()), own))]
        if self.packed and self.plan.granularity == "channel":
            # A node needs no name, and in the file of a small network names cost more than a container.
            for node in nodes:
                node.ClearField("name")
            # The shapes of hidden tensors may have changed with dropped channels.
            del graph.value_info[:]
        used = {name for node in nodes for name in node.input}
        del graph.node[:]
        graph.node.extend(nodes)
        kept = [tensor for name, tensor in self.initializers.items() if name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        onnx.checker.check_model(self.model)

    def _sum_over_steps(self, node: onnx.NodeProto, operands: Sequence[Sequence[str]], before: list[onnx.NodeProto]) -> None:
        """Replace ``node`` by the sum of its outputs for the coarse and the fine step of its input, with the same weights."""
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

    def _add_activation(self, tensor: str, form: ActivationFormat, before: list[onnx.NodeProto]) -> tuple[str, ...]:
        """Quantize and dequantize an input, and return the names of its steps (the tensor itself where it stays in float)."""
        if form.is_float:
            return (tensor,)
        key = (tensor, form.tensor)
        if key not in self.dequantized:
            kind = np.uint8 if form.feeds_integers else np.uint16
            steps = [self._round(tensor, form.scale, form.zero_point, kind, before)]
            if form.fine_scale is not None:
                remainder = f"{tensor}_left"
                before.append(helper.make_node("Sub", [tensor, steps[0]], [remainder], remainder))
                steps.append(self._round(remainder, form.fine_scale, FINE_ZERO_POINT, kind, before))
            self.dequantized[key] = tuple(steps)
        return self.dequantized[key]

    def _round(self, tensor: str, scale: float, zero_point: int, kind: npt.DTypeLike, before: list[onnx.NodeProto]) -> str:
        form = [
            self._store(f"{tensor}_scale", np.asarray(scale, np.float32)),
            self._store(f"{tensor}_zero_point", np.asarray(zero_point, kind)),
        ]
        names = f"{tensor}_quantized", f"{tensor}_dequantized"
        before.append(helper.make_node("QuantizeLinear", [tensor, *form], [names[0]], f"{tensor}_quantize"))
        before.append(helper.make_node("DequantizeLinear", [names[0], *form], [names[1]], f"{tensor}_dequantize"))
        return names[1]

    def _add_weight(self, layer: LayerPlan, form: ActivationFormat, before: list[onnx.NodeProto]) -> str:
        opset = self.model.opset_import[0].version
        kind: npt.DTypeLike = np.int8
        if self.streamed:
            name = self.streamed[layer.name]
        elif self.packed and layer.fine_inputs:
            name, nodes = self._unpack_split(layer, _list_types(opset))
            before.extend(nodes)
        elif self.packed and not isinstance(layer.bits, int):
            groups = _group(layer, _list_types(opset))
            name, nodes = self.unpacker.build(_to_array(layer.integers), groups)
            before.extend(nodes)
        else:
            kind = _choose_container(layer.bits if self.packed and isinstance(layer.bits, int) else 8, opset)
            name = self._store(f"{layer.name}.weight_integers", _to_array(layer.integers).astype(kind))
        if form.is_float:
            # ONNX Runtime folds Cast and Mul of constants when it loads the file, so that the layer runs on float32 weights. It would
            # keep a DequantizeLinear and run it at every call.
            scale = _to_array(layer.scale).reshape(-1, *[1] * (layer.integers.dim() - 1))
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
        scale_name = self._store(f"{layer.name}.weight_scale", _to_array(layer.scale))
        # Integer kernels require explicit zero points, although all are 0.
        zero_name = self._store(f"{layer.name}.weight_zero_point", np.zeros(layer.scale.numel(), np.int8))
        return self._dequantize([name, scale_name, zero_name], f"{layer.name}.weight_grid", before)

    def _unpack_split(self, layer: LayerPlan, types: Sequence[int]) -> tuple[str, list[onnx.NodeProto]]:
        """Store both halves of a split layer's columns, and build the nodes that put them together."""
        integers, fine = _to_array(layer.integers), np.asarray(layer.fine_inputs)
        fine_groups, coarse_groups = _group_halves(layer, types)
        left, nodes = self.unpacker.build(integers[:, fine], fine_groups)
        right, more = self.unpacker.build(integers[:, ~fine] // COARSE_STEP, coarse_groups, COARSE_STEP)
        order = np.concatenate([np.flatnonzero(fine), np.flatnonzero(~fine)])
        whole, last = self.unpacker.join_columns(left, right, order)
        return whole, [*nodes, *more, *last]

    def _add_biases(self, layer: LayerPlan, form: ActivationFormat, before: list[onnx.NodeProto]) -> list[str]:
        """Store the layer's bias, and return one name for each step of its input (none where it has no bias)."""
        if layer.bias is None:
            return []
        names = []
        for place, (integers, step) in enumerate(layer.bias_integers(form)):
            ending = "_fine" if place else ""
            stored = [
                self._store(f"{layer.name}.bias_integers{ending}", _to_array(integers)),
                self._store(f"{layer.name}.bias_scale{ending}", _to_array(step)),
            ]
            names.append(self._dequantize(stored, f"{layer.name}.bias_grid{ending}", before))
        return names or [self._store(f"{layer.name}.bias_grid", _to_array(layer.bias))]

    def _dequantize(self, inputs: Sequence[str], output: str, before: list[onnx.NodeProto]) -> str:
        before.append(helper.make_node("DequantizeLinear", inputs, [output], f"{output}_dequantize", axis=0))
        return output


def _to_array(tensor: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return values
