"""Export of a plan to ONNX Runtime's weight-only operator MatMulNBits, for large models that answer one request at a time.

The operator reads the packed integers block by block and so moves little memory, which dominates the cost of a large layer at batch 1.
Small models and large batches are faster as the int8 graph of ``cfptq.backends.onnxruntime``. Activations are float whatever the
plan says. The file computes the same as the twin of ``with_float_activations``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from cfptq.backends.onnxruntime import Storage, to_onnx_model
from cfptq.network import Network
from cfptq.quantize import ActivationFormat, LayerPlan, QuantizationPlan, check_matches, container_bits

#: Operator domain of MatMulNBits.
DOMAIN = "com.microsoft"

#: Block sizes that the fast kernels accept, in inputs that share a scale.
BLOCKS = (16, 32, 64, 128, 256)


def with_float_activations(plan: QuantizationPlan) -> QuantizationPlan:
    """Return the plan with all activations in float and the same weights."""
    return replace(plan, activations=tuple(ActivationFormat(form.tensor, 32) for form in plan.activations))


def build_weight_only_model(
    network: Network, plan: QuantizationPlan, metadata: Mapping[str, str] | None = None, *, accuracy_level: int = 0
) -> onnx.ModelProto:
    """Build an ONNX model in which each linear layer is a MatMulNBits node.

    The operator has one width a layer, 2, 4 or 8 bits, which holds the layer's widest integers. Convolutions
    have float weights on the plan's grid.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan.
        metadata: further entries for the file's metadata.
        accuracy_level: MatMulNBits' attribute. 0 computes in float32. 4 rounds activations to int8, which is faster and changes decisions.

    Raises:
        ModelError: the plan was made for another network.
    """
    check_matches(network, plan)
    entries = {"cfptq.plan": plan.digest, **(metadata or {})}
    # The order of a packed file's channels is another than the plan's.
    storage: Storage = "packed" if plan.granularity == "layer" else "plain"
    model = to_onnx_model(network, with_float_activations(plan), entries, storage=storage)
    made = {f"{layer.name}.weight_grid": layer for layer in plan.layers if layer.kind == "linear"}
    replaced = {*made, *(f"{layer.name}.weight_float" for layer in made.values())}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in made:
            layer = made[node.input[1]]
            nodes += _build_nodes(node, layer, accuracy_level)
            for tensor in _build_tensors(layer):
                stored[tensor.name] = tensor
        elif replaced.isdisjoint(node.output):
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensor for name, tensor in stored.items() if name in used)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _choose_block(layer: LayerPlan) -> int:
    """Return the smallest block that holds a whole row, or the largest block, so that few scales are stored."""
    return next((block for block in BLOCKS if layer.integers.shape[1] <= block), BLOCKS[-1])


def _build_nodes(gemm: onnx.NodeProto, layer: LayerPlan, accuracy_level: int) -> list[onnx.NodeProto]:
    outputs, inputs = layer.integers.shape
    has_bias = len(gemm.input) > 2
    product = f"{gemm.output[0]}_product" if has_bias else gemm.output[0]
    settings: dict[str, Any] = {
        "K": inputs,
        "N": outputs,
        "bits": container_bits(layer.held_bits),
        "block_size": _choose_block(layer),
    }
    names = [gemm.input[0], f"{layer.name}.weight_packed", f"{layer.name}.weight_scales"]
    nodes = [helper.make_node("MatMulNBits", names, [product], gemm.name, domain=DOMAIN, accuracy_level=accuracy_level, **settings)]
    if has_bias:
        nodes.append(helper.make_node("Add", [product, gemm.input[2]], [gemm.output[0]], f"{gemm.name}_bias"))
    return nodes


def _build_tensors(layer: LayerPlan) -> list[onnx.TensorProto]:
    """Return the packed weight and its scales in the operator's format.

    Integers are unsigned, with 0 stored as half the range, and packed lowest bits first. There is one scale a block.
    """
    bits, block = container_bits(layer.held_bits), _choose_block(layer)
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
