"""ONNX Runtime's weight-only form: MatMulNBits, float activations, for large models that answer one request at a time.

The operator reads the narrow integers as they are stored, block by block, so that little memory is moved: at batch 1 that is what a
large layer costs. Small models, and large batches, are faster as the int8 graph of :mod:`cfptq.backends.onnxruntime`. Activations are
float whatever the plan says, so that the file computes what :func:`in_float`'s twin does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from cfptq.backends.onnxruntime import to_onnx_model
from cfptq.network import Network
from cfptq.quantize import ActivationFormat, LayerPlan, QuantizationPlan, check_matches, container_bits

#: Where the operator lives.
DOMAIN = "com.microsoft"

#: Inputs that share a scale lie in blocks of a power of two, within what its fast kernels take.
BLOCKS = (16, 32, 64, 128, 256)


def in_float(plan: QuantizationPlan) -> QuantizationPlan:
    """The same weights with all activations in float."""
    return replace(plan, activations=tuple(ActivationFormat(form.tensor, 32) for form in plan.activations))


def weight_only_model(
    network: Network, plan: QuantizationPlan, metadata: Mapping[str, str] | None = None, *, accuracy_level: int = 0
) -> onnx.ModelProto:
    """``plan``'s weights as ONNX: each linear layer a MatMulNBits, 3-bit integers in 4; convolutions as float weights on the grid.

    Args:
        accuracy_level: 0 computes in float32; 4 rounds activations to int8 on the way, which is faster and flips decisions.

    Raises:
        ModelError: the plan was made for another network.
    """
    check_matches(network, plan)
    model = to_onnx_model(network, in_float(plan), {"cfptq.plan": plan.digest, **(metadata or {})})
    made = {f"{layer.name}.weight_grid": layer for layer in plan.layers if layer.kind == "linear"}
    replaced = {*made, *(f"{layer.name}.weight_float" for layer in made.values())}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in made:
            layer = made[node.input[1]]
            nodes += _nodes(node, layer, accuracy_level)
            for tensor in _tensors(layer):
                stored[tensor.name] = tensor
        elif replaced.isdisjoint(node.output):
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensor for name, tensor in stored.items() if name in used)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _block(layer: LayerPlan) -> int:
    """The widest block that a row fills, so that few scales are stored; a row is padded to whole blocks."""
    return next((block for block in BLOCKS if layer.integers.shape[1] <= block), BLOCKS[-1])


def _nodes(gemm: onnx.NodeProto, layer: LayerPlan, accuracy_level: int) -> list[onnx.NodeProto]:
    outputs, inputs = layer.integers.shape
    with_bias = len(gemm.input) > 2
    product = f"{gemm.output[0]}_product" if with_bias else gemm.output[0]
    settings: dict[str, Any] = {"K": inputs, "N": outputs, "bits": container_bits(layer.bits), "block_size": _block(layer)}
    names = [gemm.input[0], f"{layer.name}.weight_packed", f"{layer.name}.weight_scales"]
    nodes = [helper.make_node("MatMulNBits", names, [product], gemm.name, domain=DOMAIN, accuracy_level=accuracy_level, **settings)]
    if with_bias:
        nodes.append(helper.make_node("Add", [product, gemm.input[2]], [gemm.output[0]], f"{gemm.name}_bias"))
    return nodes


def _tensors(layer: LayerPlan) -> list[onnx.TensorProto]:
    """The weight as the operator reads it: unsigned (0 is stored as half the range), low bits first, and a scale a block."""
    bits, block = container_bits(layer.bits), _block(layer)
    integers = layer.integers.numpy().astype(np.int16)
    outputs, inputs = integers.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.int16)
    padded[:, :inputs] = integers
    unsigned = (padded + (1 << (bits - 1))).astype(np.uint8).reshape(outputs, blocks, -1, 8 // bits)
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(unsigned << shifts, axis=-1).astype(np.uint8)
    scales = np.repeat(layer.scale.numpy()[:, None], blocks, axis=1).reshape(-1)
    return [
        numpy_helper.from_array(packed, f"{layer.name}.weight_packed"),
        numpy_helper.from_array(scales, f"{layer.name}.weight_scales"),
    ]
