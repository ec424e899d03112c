"""ONNX nodes that read the integers of all layers from one stream of bits.

The stream holds each weight's integer q of w bits as q + 2^(w-1), highest bit first. At every place of the stream a convolution computes
the number that the next eight bits form. The window that ends with a weight holds it in its low bits. The nodes depend on initializers
alone, so that ONNX Runtime computes them once, when it loads the file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from cfptq.backends.packing import NodeBuilder, Store
from cfptq.quantize import LayerPlan
from cfptq.quantize.split_inputs import COARSE_STEP, MIN_COARSE_BITS, spread_weight_bits

#: Bits of a window, in which the widest integer fits.
WINDOW = 8


class StreamBuilder(NodeBuilder):
    """Builder of the stream of one file, and of the nodes that read it.

    Args:
        store: stores an initializer.
        has_uint4: the file's opset has UINT4, which holds the widths.
        taken: names that the file has already.
    """

    def __init__(self, store: Store, has_uint4: bool, taken: Collection[str] = ()) -> None:
        super().__init__(store, taken)
        self._small: npt.DTypeLike = ml_dtypes.uint4 if has_uint4 else np.uint8

    def build(self, layers: Sequence[LayerPlan], float_layers: Collection[str]) -> tuple[dict[str, str], list[onnx.NodeProto]]:
        """Store the integers of all layers, and build the nodes that read them.

        Args:
            layers: the layers as the file holds them, without dropped channels where it lacks them.
            float_layers: names of the layers that the file computes in float, whose integers stay INT32.

        Returns:
            The name of the INT8 or INT32 tensor of each layer, of the shape of its integers, by the layer's name, and the nodes.
        """
        self._nodes = []
        widths, shifts = self._read_widths(layers)
        windows = self._read_windows(layers)
        two = self._share(np.array([2], np.int32))
        ends = self._add("CumSum", [widths, self._share(np.array(0, np.int32))])
        counts = self._add("Pow", [two, widths])
        raised = self._add("Mod", [self._add("Gather", [windows, ends]), counts])
        integers = self._add("Sub", [raised, self._add("Div", [counts, two])])
        parts = self._split(integers, [layer.parameters for layer in layers])
        found = {}
        for layer, part, shift in zip(layers, parts, shifts, strict=True):
            whole = self._add("Reshape", [part, self._share_numbers(layer.integers.shape)])
            if shift:
                whole = self._add("Mul", [whole, self._add("Pow", [two, shift])])
            found[layer.name] = whole if layer.name in float_layers else self._add("Cast", [whole], to=TensorProto.INT8)
        return found, self._nodes

    def _read_windows(self, layers: Sequence[LayerPlan]) -> str:
        """Store the stream, and return the name of the INT32 tensor of its windows, in which a window's number is the bit after it."""
        bits = np.concatenate([np.zeros(WINDOW, np.uint8), *(_list_bits(layer) for layer in layers)])
        # Squeeze leaves an axis where there are at least two windows, also if all channels are dropped.
        stream = self._store(np.packbits(np.pad(bits, (0, max(WINDOW + 1 - len(bits), 0))))[:, None, None])
        powers = self._share((2 ** np.arange(WINDOW - 1, -1, -1)).astype(np.uint8)[None, None])
        ones = self._add("Sign", [self._add("BitwiseAnd", [stream, powers])])
        line = self._add("Reshape", [ones, self._share_numbers((1, 1, -1))])
        return self._add("Squeeze", [self._add("ConvInteger", [line, powers])])

    def _read_widths(self, layers: Sequence[LayerPlan]) -> tuple[str, list[str]]:
        """Store the widths of the channels.

        Returns:
            The name of the INT32 tensor that holds the width of every weight. For each layer, the name of the tensor that holds the zero
            bits below the integers of each column, or an empty name where no column is split.
        """
        # A split layer's widths are those of its fine columns.
        held = [np.asarray(layer.stored.stream_bits) + bool(layer.fine_inputs) for layer in layers]
        stored = self._add("Cast", [self._store(np.concatenate(held)[:, None].astype(self._small))], to=TensorProto.INT32)
        flat, shifts = [], []
        for layer, own in zip(layers, self._split(stored, [len(widths) for widths in held]), strict=True):
            shift = ""
            if layer.fine_inputs:
                places = np.where(layer.fine_inputs, 0, COARSE_STEP.bit_length() - 1)[None]
                shift = self._add("Cast", [self._store(places.astype(self._small))], to=TensorProto.INT32)
                least = self._share(np.array([MIN_COARSE_BITS], np.int32))
                spread = self._add("Max", [self._add("Sub", [own, shift]), least])
            else:
                channels = len(layer.scale)
                spread = self._add("Expand", [own, self._share_numbers((channels, layer.parameters // channels))])
            flat.append(self._add("Reshape", [spread, self._share_numbers((-1,))]))
            shifts.append(shift)
        return flat[0] if len(flat) == 1 else self._add("Concat", flat, axis=0), shifts

    def _split(self, tensor: str, sizes: Sequence[int]) -> list[str]:
        """Split a tensor along its first axis, and return the names of the parts."""
        return [tensor] if len(sizes) == 1 else self._add_several("Split", [tensor, self._share_numbers(sizes)], len(sizes))

    def _share_numbers(self, numbers: Sequence[int]) -> str:
        return self._share(np.array(numbers, np.int64))


def _list_bits(layer: LayerPlan) -> npt.NDArray[np.uint8]:
    """Return the bits of a layer's integers in a stream, one in each byte."""
    integers: npt.NDArray[Any] = layer.integers.detach().cpu().numpy().astype(np.int64).reshape(len(layer.scale), -1)
    own = np.asarray(layer.stored.stream_bits)
    if layer.fine_inputs:
        widths = spread_weight_bits(layer.stored.stream_bits, layer.fine_inputs)
        integers = np.where(layer.fine_inputs, integers, integers // COARSE_STEP)
    else:
        widths = np.broadcast_to(own[:, None], integers.shape)
    raised = (integers + (1 << widths >> 1)).reshape(-1, 1)
    places = np.arange(WINDOW - 1, -1, -1)
    bits: npt.NDArray[np.uint8] = (raised >> places & 1)[places < widths.reshape(-1, 1)].astype(np.uint8)
    return bits
