"""ONNX nodes that unpack a layer's integers from the containers of its channels.

The nodes depend on initializers alone. ONNX Runtime computes them once, when it loads the file, and then runs its int8 kernels. Names are
short and constants are shared, because both count in the file of a small network.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Collection, Sequence
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


class NodeBuilder:
    """Builder of nodes that compute on initializers, with names of one or two letters.

    Args:
        store: stores an initializer.
        taken: names that the file has already.
    """

    def __init__(self, store: Store, taken: Collection[str] = ()) -> None:
        self._store_as = store
        lengths = (itertools.product(string.ascii_letters, repeat=letters) for letters in itertools.count(1))
        names = map("".join, itertools.chain.from_iterable(lengths))
        self._names = (name for name in names if name not in taken)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def _add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        return self._add_several(operator, inputs, 1, **attributes)[0]

    def _add_several(self, operator: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Add a node, and return the names of its outputs."""
        outputs = [self._name() for _ in range(count)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def _store(self, values: npt.NDArray[Any]) -> str:
        return self._store_as(self._name(), values)

    def _share(self, values: npt.NDArray[Any]) -> str:
        """Store a constant that all layers share, and return its name."""
        key = str(values.dtype), values.shape, values.tobytes()
        if key not in self._constants:
            self._constants[key] = self._store(values)
        return self._constants[key]

    def _share_number(self, number: int) -> str:
        return self._share(np.array([number], np.uint8))

    def _name(self) -> str:
        return next(self._names)


class Unpacker(NodeBuilder):
    """Builder of the nodes that unpack the containers of the layers of one file.

    Args:
        store: stores an initializer.
        has_uint2: the file's opset has UINT2, which holds low parts of two bits.
        taken: names that the file has already.
    """

    def __init__(self, store: Store, has_uint2: bool, taken: Collection[str] = ()) -> None:
        super().__init__(store, taken)
        self._has_uint2 = has_uint2

    def build(self, integers: npt.NDArray[np.int8], groups: Sequence[ChannelGroup], factor: int = 1) -> tuple[str, list[onnx.NodeProto]]:
        """Store a layer's integers group by group, and build the nodes that put them together.

        Args:
            integers: the layer's integers, (out, ...).
            groups: the channels of each container.
            factor: power of two that the integers are multiplied by when they are unpacked.

        Returns:
            The name of the INT8 tensor, of the shape of ``integers``, and the nodes.
        """
        self._nodes = []
        parts = [self._unpack_group(integers[list(group.channels)], group.container, factor) for group in groups]
        whole = parts[0] if len(parts) == 1 else self._add("Concat", parts, axis=0)
        order = np.concatenate([group.channels for group in groups])
        if not (np.diff(order) == 1).all():
            whole = self._reorder(whole, order, axis=0)
        return whole, self._nodes

    def join_columns(self, left: str, right: str, columns: npt.NDArray[np.int64]) -> tuple[str, list[onnx.NodeProto]]:
        """Build the nodes that put two tensors side by side and their columns in order.

        Args:
            left: name of an INT8 tensor, (out, m).
            right: name of an INT8 tensor, (out, n).
            columns: place in the result of each column of both, (m + n,).

        Returns:
            The name of the INT8 tensor, (out, m + n), and the nodes.
        """
        self._nodes = []
        whole = self._add("Concat", [left, right], axis=1)
        return self._reorder(whole, columns, axis=1), self._nodes

    def _reorder(self, tensor: str, order: npt.NDArray[np.int64], axis: int) -> str:
        """Put the entries of a tensor, which stand in some order along an axis, in their places, and return the result's name."""
        place = np.argsort(order).astype(INDEX_TYPES[count_index_bytes(len(order))])
        index = self._store(place)
        if place.dtype != np.int32:
            index = self._add("Cast", [index], to=TensorProto.INT32)
        return self._add("Gather", [tensor, index], axis=axis)

    def _unpack_group(self, integers: npt.NDArray[np.int8], container: Container, factor: int) -> str:
        """Store the integers of one container, and return the name of the INT8 tensor, in which they are multiplied by a power of two."""
        left, shift = sum(container.low), factor.bit_length() - 1
        high = self._store((integers >> left).astype(TYPES[container.high]))
        if not left and not shift:
            return high if container.high == 8 else self._add("Cast", [high], to=TensorProto.INT8)
        # Bytes hold the bits of the two's complement, so that the parts are joined by their bits.
        joined = self._add("Cast", [high], to=TensorProto.UINT8)
        joined = self._add("BitShift", [joined, self._share_number(left + shift)], direction="LEFT")
        for bits in container.low:
            left -= bits
            part = self._unpack_bytes(((integers >> left) & (2**bits - 1)).astype(np.uint8), bits)
            if left + shift:
                part = self._add("BitShift", [part, self._share_number(left + shift)], direction="LEFT")
            joined = self._add("BitwiseOr", [joined, part])
        return self._add("Cast", [joined], to=TensorProto.INT8)

    def _unpack_bytes(self, values: npt.NDArray[np.uint8], bits: int) -> str:
        """Store numbers of a few bits side by side, and return the name of the UINT8 tensor that holds them again."""
        if bits == 2 and self._has_uint2:
            return self._add("Cast", [self._store(values.astype(ml_dtypes.uint2))], to=TensorProto.UINT8)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        rows = values.reshape(len(values), -1)
        missing = -rows.shape[1] % len(shifts)
        padded = np.pad(rows, ((0, 0), (0, missing))).reshape(len(rows), -1, len(shifts))
        stored = self._store(np.bitwise_or.reduce(padded << shifts, axis=2)[:, :, None])
        shifted = self._add("BitShift", [stored, self._share(shifts)], direction="RIGHT")
        masked = self._add("BitwiseAnd", [shifted, self._share_number(2**bits - 1)])
        found = self._add("Reshape", [masked, self._share(np.array([0, -1], np.int64))])
        if missing:
            ends = [self._share(np.array([number], np.int64)) for number in (0, rows.shape[1], 1)]
            found = self._add("Slice", [found, *ends])
        if values.ndim > 2:
            found = self._add("Reshape", [found, self._share(np.array([0, *values.shape[1:]], np.int64))])
        return found
