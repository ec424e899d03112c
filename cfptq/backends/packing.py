"""ONNX nodes that unpack a layer's integers from the containers of its channels.

The nodes depend on initializers alone. ONNX Runtime computes them once, when it loads the file, and then runs its int8 kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from cfptq.quantize.storage import ChannelGroup, Container, count_index_bytes

#: Numpy type of the integers of so many bits.
TYPES: dict[int, npt.DTypeLike] = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}

#: Numpy type of a permutation by the bytes of one index.
INDEX_TYPES: dict[int, npt.DTypeLike] = {1: np.uint8, 2: np.uint16, 4: np.int32}

#: Stores an initializer under a name, and returns the name.
Store = Callable[[str, npt.NDArray[Any]], str]


def build_unpacking(
    name: str, integers: npt.NDArray[np.int8], groups: Sequence[ChannelGroup], store: Store
) -> tuple[str, list[onnx.NodeProto]]:
    """Store a layer's integers group by group, and build the nodes that put them together as INT8.

    Args:
        name: name that those of all tensors and nodes begin with.
        integers: the layer's integers, (out, ...).
        groups: the channels of each container.
        store: stores an initializer.

    Returns:
        The name of the INT8 tensor, of the shape of ``integers``, and the nodes.
    """
    nodes: list[onnx.NodeProto] = []
    parts = [
        _unpack_group(f"{name}_{group.container.width}", integers[list(group.channels)], group.container, store, nodes) for group in groups
    ]
    if len(parts) == 1:
        return parts[0], nodes
    whole = f"{name}_rows"
    nodes.append(helper.make_node("Concat", parts, [whole], axis=0))
    order = np.concatenate([group.channels for group in groups])
    if (np.diff(order) == 1).all():
        return whole, nodes
    place = np.argsort(order).astype(INDEX_TYPES[count_index_bytes(len(order))])
    index = store(f"{name}_order", place)
    if place.dtype != np.int32:
        nodes.append(helper.make_node("Cast", [index], [f"{name}_index"], to=TensorProto.INT32))
        index = f"{name}_index"
    nodes.append(helper.make_node("Gather", [whole, index], [f"{name}_ordered"], axis=0))
    return f"{name}_ordered", nodes


def _unpack_group(name: str, integers: npt.NDArray[np.int8], container: Container, store: Store, nodes: list[onnx.NodeProto]) -> str:
    """Store the integers of one container, append the nodes that unpack them, and return the name of the INT8 tensor."""
    left = sum(container.low)
    high = store(name, (integers >> left).astype(TYPES[container.high]))
    if not left:
        if container.high == 8:
            return high
        nodes.append(helper.make_node("Cast", [high], [f"{name}_int8"], to=TensorProto.INT8))
        return f"{name}_int8"

    def add(operator: str, inputs: Sequence[str], ending: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{name}{ending}"], **attributes))
        return f"{name}{ending}"

    # Bytes hold the bits of the two's complement, so that the parts are joined by their bits.
    joined = add("Cast", [high], "_u", to=TensorProto.UINT8)
    joined = add("BitShift", [joined, _store_number(left, store)], "_h", direction="LEFT")
    for bits in container.low:
        left -= bits
        values = ((integers >> left) & (2**bits - 1)).astype(np.uint8)
        part = _unpack_bytes(f"{name}_l{left}", values, bits, store, nodes)
        if left:
            part = add("BitShift", [part, _store_number(left, store)], f"_s{left}", direction="LEFT")
        joined = add("BitwiseOr", [joined, part], f"_j{left}")
    return add("Cast", [joined], "_int8", to=TensorProto.INT8)


def _unpack_bytes(name: str, values: npt.NDArray[np.uint8], bits: int, store: Store, nodes: list[onnx.NodeProto]) -> str:
    """Store numbers of a few bits side by side in bytes, append the nodes that take them apart, and return the name of the UINT8 tensor."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    flat = np.concatenate([values.ravel(), np.zeros(-values.size % len(shifts), np.uint8)]).reshape(-1, len(shifts))
    stored = store(name, np.bitwise_or.reduce(flat << shifts, axis=1)[:, None])
    nodes.append(helper.make_node("BitShift", [stored, store(f"unpack.shifts_{bits}", shifts)], [f"{name}_r"], direction="RIGHT"))
    nodes.append(helper.make_node("BitwiseAnd", [f"{name}_r", _store_number(2**bits - 1, store)], [f"{name}_a"]))
    source = f"{name}_a"
    if flat.size != values.size:
        source = f"{name}_f"
        nodes.append(helper.make_node("Reshape", [f"{name}_a", store("unpack.flat", np.array([-1], np.int64))], [f"{name}_p"]))
        ends = store(f"{name}_n", np.array([values.size], np.int64))
        nodes.append(helper.make_node("Slice", [f"{name}_p", store("unpack.start", np.array([0], np.int64)), ends], [source]))
    shape = store(f"{name}_shape", np.array(values.shape, np.int64))
    nodes.append(helper.make_node("Reshape", [source, shape], [f"{name}_v"]))
    return f"{name}_v"


def _store_number(number: int, store: Store) -> str:
    """Store a number as UINT8, which all layers share."""
    return store(f"unpack.number_{number}", np.asarray(number, np.uint8))
