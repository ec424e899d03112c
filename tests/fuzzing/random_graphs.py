"""Random classifiers as ONNX graphs of supported operators, and as PyTorch modules.

A graph is a few words: its columns, its type, its opset, what stands at its entrance, its blocks in order, and its head. The weights are
drawn from its seed. So a graph that failed can be kept as it is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

TYPES = {"float": (TensorProto.FLOAT, np.float32), "half": (TensorProto.FLOAT16, np.float16), "double": (TensorProto.DOUBLE, np.float64)}
#: Levels of the first column, which holds codes.
LEVELS = 4


def draw_people(columns: int, count: int, seed: int) -> Tensor:
    """Rows whose first column holds a code from 0 to 3, and whose others are standard normal."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, columns, generator=generator)
    rows[:, 0] = torch.randint(LEVELS, (count,), generator=generator).float()
    return rows


@dataclass(frozen=True)
class GraphSpec:
    """One random graph."""

    seed: int
    columns: int
    kind: str
    opset: int
    constants: str
    entrance: str
    blocks: tuple[str, ...]
    head: str


class GraphWriter:
    """Writer of one graph, which draws weights as they are asked for."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.draw = np.random.default_rng(spec.seed)
        self.element, self.dtype = TYPES[spec.kind]
        self.opset = spec.opset
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def hold(self, array: Any, name: str = "c") -> str:
        """Store a constant, and return its name."""
        stored = np.asarray(array)
        stored = stored.astype(self.dtype) if stored.dtype.kind == "f" else stored
        name = f"{name}{len(self.held) + len(self.nodes)}"
        tensor = numpy_helper.from_array(stored, name)
        if self.spec.constants == "initializer":
            self.held.append(tensor)
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def weight(self, *shape: int, fan: int | None = None) -> str:
        return self.hold(self.draw.normal(size=shape) * 1.3 / math.sqrt(fan or shape[0]), "w")

    def vector(self, size: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.hold(self.draw.uniform(low, high, size), "v")

    def ints(self, *numbers: int) -> str:
        return self.hold(np.array(numbers, np.int64), "i")

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node, and return the name of its output, or a list of several."""
        names = [f"t{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"{operator}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def by_axes(self, operator: str, x: str, axes: tuple[int, ...], since: int = 13, **attributes: Any) -> str:
        """Add a node whose axes are an input from an opset on, and an attribute before."""
        if self.opset >= since:
            return str(self.add(operator, x, self.ints(*axes), **attributes))
        return str(self.add(operator, x, axes=list(axes), **attributes))

    def split(self, x: str, sizes: tuple[int, ...]) -> list[str]:
        if self.opset >= 13:
            return list(self.add("Split", x, self.ints(*sizes), outputs=len(sizes), axis=1))
        return list(self.add("Split", x, outputs=len(sizes), axis=1, split=list(sizes)))

    def reshape(self, x: str, *sizes: int) -> str:
        return str(self.add("Reshape", x, self.ints(*sizes)))

    def dense(self, x: str, width: int, out: int) -> str:
        return str(self.add("Gemm", x, self.weight(width, out), self.vector(out)))


Written = tuple[str, int]
Block = Callable[[GraphWriter, str, int], Written]


def _dense_forms() -> dict[str, Block]:
    def gemm(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        return w.dense(x, n, out), out

    def transposed(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        return w.add("Gemm", x, w.weight(out, n, fan=n), w.vector(out), transB=1), out

    def scaled(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        return w.add("Gemm", x, w.weight(n, out), w.vector(1), alpha=float(w.draw.uniform(-2, 2)), beta=float(w.draw.uniform(0, 2))), out

    def without_bias(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        return w.add("Gemm", x, w.weight(n, out)), out

    def matmul(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        return w.add("MatMul", x, w.weight(n, out)), out

    def matmul_add(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        product, bias = w.add("MatMul", x, w.weight(n, out)), w.vector(out)
        return w.add("Add", *((product, bias) if w.draw.random() < 0.5 else (bias, product))), out

    def matmul_sub(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        return w.add("Sub", w.add("MatMul", x, w.weight(n, out)), w.vector(out)), out

    def left(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        turned = w.add("Transpose", x, perm=[1, 0])
        return w.add("Transpose", w.add("MatMul", w.weight(out, n, fan=n), turned), perm=[1, 0]), out

    def einsum(w: GraphWriter, x: str, n: int) -> Written:
        if w.opset < 12:
            return matmul(w, x, n)
        out = int(w.draw.integers(2, 13))
        return w.add("Einsum", x, w.weight(n, out), equation="ni,ij->nj"), out

    def folded_weight(w: GraphWriter, x: str, n: int) -> Written:
        out = int(w.draw.integers(2, 13))
        return w.add("MatMul", x, w.add("Transpose", w.weight(out, n, fan=n), perm=[1, 0])), out

    def shared(w: GraphWriter, x: str, n: int) -> Written:
        weight = w.weight(n, n)
        return w.add("MatMul", w.add("Tanh", w.add("MatMul", x, weight)), weight), n

    forms = (gemm, transposed, scaled, without_bias, matmul, matmul_add, matmul_sub, left, einsum, folded_weight, shared)
    return {form.__name__: form for form in forms}


def _by_element() -> dict[str, Block]:
    def plain(operator: str, **attributes: Any) -> Block:
        return lambda w, x, n: (w.add(operator, x, **attributes), n)

    def since(opset: int, block: Block, other: Block) -> Block:
        return lambda w, x, n: (block if w.opset >= opset else other)(w, x, n)

    def swish(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Mul", x, w.add("Sigmoid", x)), n

    def erf_gelu(w: GraphWriter, x: str, n: int) -> Written:
        inner = w.add("Erf", w.add("Div", x, w.hold(np.float32(math.sqrt(2)))))
        return w.add("Mul", w.add("Mul", x, w.add("Add", inner, w.hold(np.float32(1)))), w.hold(np.float32(0.5))), n

    def tanh_gelu(w: GraphWriter, x: str, n: int) -> Written:
        cube = w.add("Mul", w.add("Pow", x, w.hold(np.float32(3))), w.hold(np.float32(0.044715)))
        inner = w.add("Tanh", w.add("Mul", w.add("Add", x, cube), w.hold(np.float32(0.7978845608))))
        return w.add("Mul", w.add("Mul", x, w.hold(np.float32(0.5))), w.add("Add", inner, w.hold(np.float32(1)))), n

    def clip(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Clip", x, w.hold(np.float32(-0.8)), w.hold(np.float32(1.2))), n

    def clip_below(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Clip", x, w.hold(np.float32(-0.3))), n

    def clip_above(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Clip", x, "", w.hold(np.float32(0.9))), n

    def square(w: GraphWriter, x: str, n: int) -> Written:
        bounded = w.add("Tanh", x)
        return w.add("Mul", bounded, bounded), n

    def root(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Sqrt", w.add("Add", w.add("Abs", x), w.hold(np.float32(0.1)))), n

    def exponential(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Exp", w.add("Neg", w.add("Abs", x))), n

    def logarithm(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Log", w.add("Add", w.add("Softplus", x), w.hold(np.float32(0.5)))), n

    def reciprocal(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Reciprocal", w.add("Add", w.add("Abs", x), w.hold(np.float32(1)))), n

    def prelu(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("PRelu", x, w.vector(n)), n

    def power(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Pow", w.add("Sigmoid", x), w.hold(np.float32(1.5))), n

    def maximum(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Max", x, w.vector(n)), n

    def minimum(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Min", x, w.vector(n), w.hold(np.float32(0.7))), n

    def leaky_where(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Where", w.add("Greater", x, w.hold(np.float32(0))), x, w.add("Mul", x, w.hold(np.float32(0.1)))), n

    def affine(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Add", w.add("Mul", x, w.vector(n, 0.3, 2)), w.vector(n)), n

    def scale(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Div", x, w.hold(np.float32(1.7))), n

    def from_constant(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Sub", w.vector(n), x), n

    def batch_norm(w: GraphWriter, x: str, n: int) -> Written:
        parts = w.vector(n, -1.5, 1.5), w.vector(n), w.vector(n), w.vector(n, 0.3, 3)
        return w.add("BatchNormalization", x, *parts, epsilon=float(w.draw.choice([1e-5, 1e-3]))), n

    def cast(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Cast", w.add("Cast", x, to=TensorProto.DOUBLE), to=w.element), n

    found = {
        **{name.lower(): plain(name) for name in ("Relu", "Sigmoid", "Tanh", "Softsign", "Selu", "Elu", "Abs", "Neg", "Sin", "Cos", "Erf")},
        **{name.lower(): plain(name) for name in ("Atan", "HardSigmoid", "Identity", "Dropout", "Softplus", "ThresholdedRelu", "Shrink")},
        "leaky_relu": plain("LeakyRelu", alpha=0.2),
        "elu_2": plain("Elu", alpha=1.7),
        "celu": since(12, plain("Celu", alpha=0.7), plain("Elu")),
        "hard_swish": since(14, plain("HardSwish"), swish),
        "mish": since(18, plain("Mish"), swish),
        "gelu": since(20, plain("Gelu"), erf_gelu),
        "gelu_tanh": since(20, plain("Gelu", approximate="tanh"), tanh_gelu),
    }
    own = (swish, erf_gelu, tanh_gelu, clip, clip_below, clip_above, square, root, exponential, logarithm, reciprocal, prelu, power)
    more = (maximum, minimum, leaky_where, affine, scale, from_constant, batch_norm, cast)
    return found | {block.__name__: block for block in (*own, *more)}


def _normalizations() -> dict[str, Block]:
    def composed(w: GraphWriter, x: str, n: int) -> Written:
        centred = w.add("Sub", x, w.by_axes("ReduceMean", x, (-1,), 18, keepdims=1))
        square = w.add("Mul", centred, centred)
        spread = w.add("Add", w.by_axes("ReduceMean", square, (-1,), 18, keepdims=1), w.hold(np.float32(0.1)))
        return w.add("Div", centred, w.add("Sqrt", spread)), n

    def layer_norm(w: GraphWriter, x: str, n: int) -> Written:
        if w.opset < 17:
            return composed(w, x, n)
        return w.add("LayerNormalization", x, w.vector(n, 0.5, 1.5), w.vector(n), epsilon=0.1), n

    def lp(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("LpNormalization", w.add("Add", x, w.vector(n, 2, 3)), axis=1, p=int(w.draw.integers(1, 3))), n

    def softmax(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Softmax", x, axis=int(w.draw.choice([1, -1]))), n

    def log_softmax(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("LogSoftmax", x, axis=1), n

    def reduce_concat(w: GraphWriter, x: str, n: int) -> Written:
        operator = str(
            w.draw.choice(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceL1"])
        )
        return w.add("Concat", x, w.by_axes(operator, x, (1,), 18, keepdims=1), axis=1), n + 1

    def sum_concat(w: GraphWriter, x: str, n: int) -> Written:
        total = w.by_axes("ReduceSum", x, (1,), 13, keepdims=0)
        return w.add("Concat", w.by_axes("Unsqueeze", total, (1,)), x, axis=-1), n + 1

    return {block.__name__: block for block in (composed, layer_norm, lp, softmax, log_softmax, reduce_concat, sum_concat)}


def _branches() -> dict[str, Block]:
    def residual(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Add", x, w.dense(w.add("Relu", w.dense(x, n, n)), n, n)), n

    def dense_residual(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Relu", w.add("Add", w.dense(x, n, n), x)), n

    def dense_concat(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Concat", w.dense(x, n, 3), w.add("Tanh", w.dense(x, n, 4)), axis=1), 7

    def gate(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Mul", w.dense(x, n, 5), w.add("Sigmoid", w.dense(x, n, 5))), 5

    def split_gate(w: GraphWriter, x: str, n: int) -> Written:
        left, right = w.split(w.dense(x, n, 8), (4, 4))
        return w.add("Mul", left, w.add("Sigmoid", right)), 4

    def split_concat(w: GraphWriter, x: str, n: int) -> Written:
        first = n // 2 or 1
        if first == n:
            return x, n
        left, right = w.split(x, (first, n - first))
        return w.add("Concat", w.add("Relu", right), left, axis=1), n

    def sum_of_three(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Sum", w.dense(x, n, 4), w.dense(x, n, 4), w.vector(4)), 4

    def mean_of_two(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Mean", x, w.dense(x, n, n)), n

    def max_of_two(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Max", w.dense(x, n, 6), w.dense(x, n, 6)), 6

    def outer(w: GraphWriter, x: str, n: int) -> Written:
        left, right = (w.add("Tanh", w.dense(x, n, 3)) for _ in range(2))
        product = w.add("MatMul", w.by_axes("Unsqueeze", left, (2,)), w.by_axes("Unsqueeze", right, (1,)))
        return w.add("Flatten", product), 9

    def attention(w: GraphWriter, x: str, n: int) -> Written:
        tokens = w.reshape(w.dense(x, n, 12), -1, 3, 4)
        query, key, value = (w.add("MatMul", tokens, w.weight(4, 4)) for _ in range(3))
        scores = w.add("MatMul", query, w.add("Transpose", key, perm=[0, 2, 1]))
        mixed = w.add("MatMul", w.add("Softmax", w.add("Mul", scores, w.hold(np.float32(0.5))), axis=-1), value)
        return w.reshape(w.add("Add", tokens, mixed), -1, 12), 12

    blocks = (
        residual,
        dense_residual,
        dense_concat,
        gate,
        split_gate,
        split_concat,
        sum_of_three,
        mean_of_two,
        max_of_two,
        outer,
        attention,
    )
    return {block.__name__: block for block in blocks}


def _moves() -> dict[str, Block]:
    def slice_columns(w: GraphWriter, x: str, n: int) -> Written:
        last = max(n - 1, 2) if n > 2 else n
        return w.add("Slice", x, w.ints(n - last), w.ints(n), w.ints(1)), last

    def slice_backwards(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Slice", x, w.ints(-1), w.ints(-n - 1), w.ints(1), w.ints(-1)), n

    def gather(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Gather", x, w.ints(*w.draw.permutation(n).tolist()), axis=1), n

    def turn_twice(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Transpose", w.add("Transpose", x)), n

    def reshape(w: GraphWriter, x: str, n: int) -> Written:
        return w.reshape(w.reshape(x, 0, n, 1), -1, n), n

    def unsqueeze(w: GraphWriter, x: str, n: int) -> Written:
        return w.by_axes("Squeeze", w.by_axes("Unsqueeze", x, (1,)), (1,)), n

    def pad(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Pad", x, w.ints(0, 1, 0, 2), w.hold(np.float32(0.3))), n + 3

    def tile(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Tile", x, w.ints(1, 2)), 2 * n

    def expand(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("Flatten", w.add("Expand", w.by_axes("Unsqueeze", x, (1,)), w.ints(1, 2, 1))), 2 * n

    def cumulative(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("CumSum", x, w.ints(1)), n

    def largest(w: GraphWriter, x: str, n: int) -> Written:
        return w.add("TopK", x, w.ints(min(2, n)), outputs=2, axis=1)[0], min(2, n)

    def by_shape(w: GraphWriter, x: str, n: int) -> Written:
        rows = w.add("Gather", w.add("Shape", x), w.ints(0), axis=0)
        return w.add("Reshape", x, w.add("Concat", rows, w.ints(n), axis=0)), n

    blocks = (slice_columns, slice_backwards, gather, turn_twice, reshape, unsqueeze, pad, tile, expand, cumulative, largest, by_shape)
    return {block.__name__: block for block in blocks}


def _images() -> dict[str, Block]:
    def image(w: GraphWriter, x: str, n: int) -> str:
        return w.reshape(w.dense(x, n, 32), -1, 2, 4, 4)

    def conv(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("Conv", image(w, x, n), w.weight(3, 2, 3, 3, fan=18), w.vector(3), pads=[1, 1, 1, 1], strides=[2, 2])
        return w.add("Flatten", w.add("Relu", made)), 12

    def conv_norm_pool(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("Conv", image(w, x, n), w.weight(3, 2, 3, 3, fan=18), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        normed = w.add("BatchNormalization", made, w.vector(3, -1.5, 1.5), w.vector(3), w.vector(3), w.vector(3, 0.3, 3))
        return w.add("Flatten", w.add("MaxPool", w.add("Relu", normed), kernel_shape=[2, 2], strides=[2, 2])), 12

    def grouped(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("Conv", image(w, x, n), w.weight(4, 1, 2, 2, fan=4), w.vector(4), group=2, dilations=[2, 2])
        pooled = w.add("AveragePool", w.add("Tanh", made), kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[1, 1])
        return w.add("Flatten", pooled), 16

    def same_padding(w: GraphWriter, x: str, n: int) -> Written:
        automatic = str(w.draw.choice(["SAME_UPPER", "SAME_LOWER"]))
        made = w.add("Conv", image(w, x, n), w.weight(3, 2, 2, 2, fan=8), auto_pad=automatic, kernel_shape=[2, 2])
        return w.add("Flatten", w.add("GlobalAveragePool", w.add("LeakyRelu", made))), 3

    def conv_1d(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("Conv", w.reshape(x, -1, 1, n), w.weight(2, 1, 2, fan=2), w.vector(2), pads=[1, 0])
        return w.add("Flatten", w.add("Relu", made)), 2 * n

    def pool_1d(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("AveragePool", w.reshape(x, -1, 1, n), kernel_shape=[2], pads=[1, 0], count_include_pad=int(w.draw.integers(2)))
        return w.add("Flatten", made), n

    def upward(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("ConvTranspose", w.reshape(w.dense(x, n, 8), -1, 2, 2, 2), w.weight(2, 1, 2, 2, fan=8), strides=[2, 2])
        return w.add("Flatten", made), 16

    def depth(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("DepthToSpace", w.reshape(w.dense(x, n, 16), -1, 4, 2, 2), blocksize=2)
        return w.add("Flatten", w.add("GlobalMaxPool", w.add("SpaceToDepth", made, blocksize=2))), 4

    def instance_norm(w: GraphWriter, x: str, n: int) -> Written:
        made = w.add("InstanceNormalization", image(w, x, n), w.vector(2, 0.5, 1.5), w.vector(2), epsilon=0.1)
        return w.add("Flatten", made), 32

    blocks = (conv, conv_norm_pool, grouped, same_padding, conv_1d, pool_1d, upward, depth, instance_norm)
    return {block.__name__: block for block in blocks}


#: Blocks by name. Each maps (N, n) to (N, m).
BLOCKS: dict[str, Block] = _dense_forms() | _by_element() | _normalizations() | _branches() | _moves() | _images()


#: Blocks that ONNX Runtime computes in single precision alone. Graphs of another type cast around them.
SINGLE = frozenset(
    (
        *("atan", "celu", "clip", "clip_above", "clip_below", "conv", "conv_1d", "conv_norm_pool", "cumulative", "depth", "elu", "elu_2"),
        *("erf", "erf_gelu", "gelu", "grouped", "hard_swish", "hardsigmoid", "instance_norm", "leaky_relu", "logarithm", "mean_of_two"),
        *("mish", "pool_1d", "prelu", "same_padding", "selu", "softplus", "softsign", "thresholdedrelu", "upward"),
    )
)


def write_block(w: GraphWriter, name: str, x: str, n: int) -> Written:
    """Write a block, between casts where its type is not the graph's."""
    if w.spec.kind == "float" or name not in SINGLE:
        return BLOCKS[name](w, x, n)
    element, dtype = w.element, w.dtype
    x = w.add("Cast", x, to=TensorProto.FLOAT)
    w.element, w.dtype = TYPES["float"]
    x, n = BLOCKS[name](w, x, n)
    w.element, w.dtype = element, dtype
    return w.add("Cast", x, to=element), n


def _codes(w: GraphWriter, x: str) -> tuple[str, str]:
    """The first column as whole numbers, and the others."""
    first, rest = w.split(x, (1, w.spec.columns - 1))
    return w.by_axes("Squeeze", w.add("Cast", first, to=TensorProto.INT64), (1,)), rest


def _one_hot(w: GraphWriter, x: str) -> Written:
    code, rest = _codes(w, x)
    values = w.hold(np.array([0, 1], np.int64))
    hot = w.add("Cast", w.add("OneHot", code, w.hold(np.array([LEVELS], np.int64)), values, axis=-1), to=w.element)
    return w.add("Concat", hot, rest, axis=1), LEVELS + w.spec.columns - 1


def _one_hot_encoder(w: GraphWriter, x: str) -> Written:
    first, rest = w.split(x, (1, w.spec.columns - 1))
    hot = w.add("OneHotEncoder", w.add("Cast", first, to=TensorProto.INT64), cats_int64s=list(range(LEVELS)), zeros=1, domain="ai.onnx.ml")
    return w.add("Concat", w.reshape(hot, -1, LEVELS), rest, axis=1), LEVELS + w.spec.columns - 1


def _equal(w: GraphWriter, x: str) -> Written:
    first, rest = w.split(x, (1, w.spec.columns - 1))
    hot = w.add("Cast", w.add("Equal", w.add("Cast", first, to=TensorProto.INT64), w.hold(np.arange(LEVELS)[None])), to=w.element)
    return w.add("Concat", hot, rest, axis=1), LEVELS + w.spec.columns - 1


def _embedding(w: GraphWriter, x: str) -> Written:
    code, rest = _codes(w, x)
    return w.add("Concat", w.add("Gather", w.weight(LEVELS, 3), code, axis=0), rest, axis=1), 3 + w.spec.columns - 1


def _standardize(w: GraphWriter, x: str) -> Written:
    centred = w.add("Sub", x, w.vector(w.spec.columns))
    return w.add("Div", centred, w.vector(w.spec.columns, 0.5, 2)), w.spec.columns


def _scaler(w: GraphWriter, x: str) -> Written:
    n = w.spec.columns
    offset, scale = w.draw.uniform(-1, 1, n).tolist(), w.draw.uniform(0.5, 2, n).tolist()
    made = w.add("Scaler", x, offset=offset, scale=scale, domain="ai.onnx.ml")
    return made, n


def _imputer(w: GraphWriter, x: str) -> Written:
    n = w.spec.columns
    filling = w.draw.uniform(-1, 1, n).tolist()
    return w.add("Imputer", x, imputed_value_floats=filling, replaced_value_float=math.nan, domain="ai.onnx.ml"), n


def _towers(w: GraphWriter, x: str) -> Written:
    n = w.spec.columns
    left, right = w.split(x, (n - n // 2, n // 2))
    return w.add("Concat", w.add("Relu", w.dense(left, n - n // 2, 4)), w.add("Tanh", w.dense(right, n // 2, 3)), axis=1), 7


#: What stands at a graph's entrance, by name. Each maps the rows to (N, m).
ENTRANCES: dict[str, Callable[[GraphWriter, str], Written]] = {
    "plain": lambda w, x: (x, w.spec.columns),
    "standardize": _standardize,
    "one_hot": _one_hot,
    "equal": _equal,
    "embedding": _embedding,
    "towers": _towers,
}
#: Entrances of ``ai.onnx.ml``, whose operators take float32 rows.
FLOAT_ENTRANCES = {"scaler": _scaler, "imputer": _imputer, "one_hot_encoder": _one_hot_encoder}
HEADS = ("logits", "three", "logit", "flat", "probability", "probabilities", "log_probabilities", "label")


def write_graph(spec: GraphSpec) -> onnx.ModelProto:
    """Write the graph of ``spec``, from rows "x" to scores "y"."""
    w = GraphWriter(spec)
    x, n = {**ENTRANCES, **FLOAT_ENTRANCES}[spec.entrance](w, "x")
    for name in spec.blocks:
        x, n = write_block(w, name, x, n)
    classes = {"three": 3, "logit": 1, "flat": 1, "probability": 1}.get(spec.head, 2)
    scores = w.add("Gemm", x, w.weight(n, classes), w.vector(classes, -0.2, 0.2))
    outputs = [helper.make_tensor_value_info("y", w.element, None)]
    if spec.head == "flat":
        scores = w.by_axes("Squeeze", scores, (1,))
    final = {"probability": "Sigmoid", "probabilities": "Softmax", "log_probabilities": "LogSoftmax"}.get(spec.head, "Identity")
    more = {"axis": 1} if final in ("Softmax", "LogSoftmax") else {}
    w.nodes.append(helper.make_node(final, [scores], ["y"], **more))
    if spec.head == "label":
        w.nodes.append(helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0))
        outputs.append(helper.make_tensor_value_info("label", TensorProto.INT64, None))
    given = helper.make_tensor_value_info("x", w.element, ["N", spec.columns])
    opsets = [helper.make_opsetid("", spec.opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(helper.make_graph(w.nodes, "g", [given], outputs, w.held), opset_imports=opsets, ir_version=8)


# PyTorch modules ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModuleSpec:
    """One random PyTorch module."""

    seed: int
    columns: int
    blocks: tuple[str, ...]
    head: str


class _Residual(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(n, n), nn.Linear(n, n, bias=False), nn.BatchNorm1d(n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.norm(self.inner(x))))


class _Gate(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.both = nn.Linear(n, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).chunk(2, dim=1)
        return left * torch.sigmoid(right)


class _Concat(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(n, 3), nn.Linear(n, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((torch.tanh(self.left(x)), self.right(x), x.mean(dim=1, keepdim=True)), dim=-1)


class _Attention(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.inlet, self.query, self.key, self.value = nn.Linear(n, 12), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.inlet(x).reshape(-1, 3, 4)
        weights = torch.softmax(self.query(tokens) @ self.key(tokens).transpose(1, 2) / 2, dim=-1)
        return (tokens + weights @ self.value(tokens)).flatten(1)


class _Shared(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.layer = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class _Image(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.inlet, self.conv = nn.Linear(n, 32), nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.norm, self.pool = nn.BatchNorm2d(4), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.norm(self.conv(self.inlet(x).view(-1, 2, 4, 4))))).flatten(1)


class _Sequence(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 2, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x.unsqueeze(1))).flatten(1)


def _keep(build: Callable[[int], nn.Module]) -> Callable[[int], tuple[nn.Module, int]]:
    return lambda n: (build(n), n)


#: Modules by name, with the width that they lead to.
MODULES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "linear": lambda n: (nn.Linear(n, 9), 9),
    "narrow": lambda n: (nn.Linear(n, 3, bias=False), 3),
    "batch_norm": _keep(nn.BatchNorm1d),
    "layer_norm": _keep(nn.LayerNorm),
    "residual": _keep(_Residual),
    "gate": lambda n: (_Gate(n), 5),
    "concat": lambda n: (_Concat(n), 8),
    "attention": lambda n: (_Attention(n), 12),
    "shared": _keep(_Shared),
    "image": lambda n: (_Image(n), 16),
    "sequence": lambda n: (_Sequence(n), 2 * n),
    "weight_norm": lambda n: (nn.utils.parametrizations.weight_norm(nn.Linear(n, 6)), 6),
    "prelu": _keep(nn.PReLU),
    "softmax": _keep(lambda n: nn.Softmax(dim=1)),
    **{
        kind.__name__.lower(): _keep(lambda n, kind=kind: kind())
        for kind in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus)
    },
    **{kind.__name__.lower(): _keep(lambda n, kind=kind: kind()) for kind in (nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Dropout)},
}
MODULE_HEADS = ("logits", "three", "logit", "flat", "probability", "probabilities")


def build_module(spec: ModuleSpec) -> nn.Module:
    """Build the module of ``spec`` with drawn weights and statistics, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        layers, n = [], spec.columns
        for name in spec.blocks:
            layer, n = MODULES[name](n)
            layers.append(layer)
        layers.append(nn.Linear(n, {"three": 3, "logit": 1, "flat": 1, "probability": 1}.get(spec.head, 2)))
        final = {"flat": nn.Flatten(0), "probability": nn.Sigmoid(), "probabilities": nn.Softmax(dim=-1)}.get(spec.head)
        model = nn.Sequential(*layers, *([] if final is None else [final])).eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(1.8)
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    assert module.running_mean is not None and module.running_var is not None
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.3, 3)
                    module.weight.uniform_(-1.5, 1.5)
                    module.bias.normal_()
    return model
