"""ONNX Runtime sessions on the CPU, with and without protection against saturating int8 products.

On x86 without VNNI (Intel before 2019, AMD before Zen 4), ONNX Runtime's default int8 kernels add pairs of products in 16 bits. A product
is an unsigned activation times a signed weight, and weights beyond ±63 can saturate the sum.
The session option ``session.x64quantprecision`` = "1" chooses kernels that do not saturate, at some cost in speed.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

#: Session option of ONNX Runtime that avoids saturation on x86, and the value that turns it on.
PRECISION_OPTION, PRECISE = "session.x64quantprecision", "1"

#: Operators that may lack a weight's zero point, with the places of weight, zero point and scale (-1 is a zero point of one number).
OPTIONAL_ZERO_POINTS = {
    "MatMulInteger": (1, 3, -1),
    "ConvInteger": (1, 3, -1),
    "DynamicQuantizeMatMul": (1, 3, 2),
    "MatMulIntegerToFloat": (1, 5, 3),
    "DequantizeLinear": (0, 2, 1),
}

#: Number of products of the largest activation and the largest weight whose sum saturates.
PROBE_INPUTS, LARGEST_ACTIVATION, LARGEST_WEIGHT = 64, 255, 127


def open_session(artefact: str | Path | bytes, *, threads: int = 1, precise: bool = True) -> onnxruntime.InferenceSession:
    """Open a session in ONNX Runtime's CPU provider with its default graph optimizations.

    Args:
        artefact: path or content of an ONNX file.
        threads: intra-op threads.
        precise: keep int8 kernels from saturating. False opens the session that a deployment opens by default.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if precise:
        options.add_session_config_entry(PRECISION_OPTION, PRECISE)
    return onnxruntime.InferenceSession(artefact, sess_options=options, providers=["CPUExecutionProvider"])


def duplicate_shared_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in which no two nodes share a dequantized int8 initializer.

    ONNX Runtime 1.32 and earlier cannot open a precise session of a file where two products share a weight beyond ±63.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights}
    seen: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in dequantized and name in seen:
                own = onnx.NodeProto()
                own.CopyFrom(dequantized[name])
                ending = f"_of_{len(nodes)}_{place}"
                own.name, own.output[0] = own.name + ending, name + ending
                for at, given in enumerate(own.input):  # the weight, and its zero points
                    if given in weights:
                        tensor = onnx.TensorProto()
                        tensor.CopyFrom(weights[given])
                        tensor.name = own.input[at] = given + ending
                        graph.initializer.append(tensor)
                nodes.append(own)
                node.input[place] = own.output[0]
            seen.add(name)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return copied


def add_zero_points(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy of ``model`` in which every int8 weight has an explicit zero point, or None where that is so already.

    ONNX Runtime 1.29 and earlier end the whole process where a precise session opens a product whose int8 weight has none.
    """
    if not any(_find_missing_zero_points(model)):
        return None
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for number, (graph, node, place, shape) in enumerate(_find_missing_zero_points(copied)):
        zero = numpy_helper.from_array(np.zeros(shape, np.int8), f"explicit_zero_point_{number}")
        graph.initializer.append(zero)
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = zero.name
    return copied


def _find_missing_zero_points(model: onnx.ModelProto) -> Iterator[tuple[onnx.GraphProto, onnx.NodeProto, int, tuple[int, ...]]]:
    """Yield graph and node of every int8 weight without a zero point, with the zero point's place among the inputs and its shape."""
    graphs = list(iterate_graphs(model.graph))
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    for node in (node for graph in graphs for node in graph.node if node.op_type == "Constant"):
        for attribute in node.attribute:
            if attribute.name == "value":
                constants[node.output[0]] = attribute.t
    for graph in graphs:
        for node in graph.node:
            weight, place, scale = OPTIONAL_ZERO_POINTS.get(node.op_type, (0, -1, -1))
            if place < 0 or (len(node.input) > place and node.input[place]) or len(node.input) <= weight:
                continue
            stored = constants.get(node.input[weight])
            shaped = constants.get(node.input[scale]) if scale >= 0 else None
            if stored is not None and stored.data_type == TensorProto.INT8 and (scale < 0 or shaped is not None):
                yield graph, node, place, () if shaped is None else tuple(shaped.dims)


def iterate_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield ``graph`` and the graphs that its nodes hold, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (attribute.GRAPH, attribute.GRAPHS) else ():
                yield from iterate_graphs(inner)


@cache
def int8_saturates() -> bool:
    """Return whether a default session of ONNX Runtime computes wrong sums with full-range int8 weights on this processor."""
    weight = numpy_helper.from_array(np.full((PROBE_INPUTS, 1), LARGEST_WEIGHT, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, PROBE_INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    rows = np.full((1, PROBE_INPUTS), LARGEST_ACTIVATION, np.uint8)
    answer = open_session(model.SerializeToString(), precise=False).run(None, {"x": rows})[0]
    return int(answer.item()) != PROBE_INPUTS * LARGEST_ACTIVATION * LARGEST_WEIGHT


def describe_runtime() -> dict[str, Any]:
    """Return the processor, ONNX Runtime's version and the session option, which figures about an ONNX file depend on."""
    return {
        "processor": _read_processor_name(),
        "int8_saturates": int8_saturates(),
        "onnxruntime": onnxruntime.__version__,
        PRECISION_OPTION: PRECISE,
    }


def describe_saturation(name: str, rows: int, among: int) -> str:
    """Return the warning that a default session decides some rows otherwise on this processor.

    Args:
        name: the model's name.
        rows: rows with another decision.
        among: all rows.
    """
    return (
        f"{name}: ONNX Runtime's default session decides {rows} of {among} rows otherwise on this processor, because int8 products "
        "saturate without VNNI. All figures were computed without saturation. Keep weights within ±63 (portable=True), or deploy with the "
        f"session option {PRECISION_OPTION}={PRECISE!r}."
    )


@cache
def _read_processor_name() -> str:
    """Return the processor's model name and architecture, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, '') or platform.processor() or 'unknown'} ({platform.machine()})"
