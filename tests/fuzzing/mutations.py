"""Edits that damage valid files, documents and ONNX graphs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from hypothesis import strategies as st
from onnx import TensorProto

#: Names with markup, HTML, formulas, control characters, other scripts and paths.
HOSTILE_NAMES = (
    "",
    " ",
    "<script>alert(1)</script>",
    "[bold red]x[/]",
    "[/]",
    "{0}",
    "%s%n",
    "=1+1",
    "a,b",
    'a"b',
    "a\nb",
    "\u202eabc",
    "\ufeff",
    "\u0131",
    "é" * 40,
    "💥",
    "../../etc/passwd",
    "x" * 5000,
    "NaN",
    "null",
    "True",
    "\x07",
)
#: Values of wrong types and sizes.
HOSTILE_VALUES: tuple[Any, ...] = (
    *HOSTILE_NAMES,
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    2**31,
    2**63,
    -(2**64),
    10**400,
    0.0,
    -0.0,
    1e-320,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    0.5,
    [],
    {},
    [None],
    [[1, 2], [3]],
    {"a": 1},
    {"": {}},
)
TOKENS = (
    *(b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\n", b"\r", b",", b";", b'"', b"'", b"[" * 200, b"{" * 200, b"- " * 100),
    *(b"&a [*a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [ls]", b"!!binary x", b"2001-99-99", b"0x", b"1e999", b".nan"),
    *(b"9" * 400, b"NaN", b"Infinity", b"-", b":", b"? ", b"|", b"%YAML 9.9\n", b"---\n", b"\t", b"\xc3", b"null", b"=cmd|' /C calc'!A0"),
)

values = st.one_of(st.sampled_from(HOSTILE_VALUES), st.integers(-3, 12), st.floats(), st.text(max_size=6))


@dataclass(frozen=True)
class Edit:
    """One edit: what is done, at which place (counted round), and with which value."""

    action: str
    place: int
    value: Any = None


def lists_of(actions: Sequence[str], least: int = 1, most: int = 4) -> st.SearchStrategy[list[Edit]]:
    """Lists of edits with these actions."""
    return st.lists(st.builds(Edit, st.sampled_from(actions), st.integers(0, 9999), values), min_size=least, max_size=most)


# Bytes -------------------------------------------------------------------------------------------------------------------------------

BYTE_ACTIONS = ("flip", "set", "cut", "drop", "repeat", "insert", "token")


def edit_bytes(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Apply edits to bytes."""
    data = bytearray(content)
    for edit in edits:
        at = (edit.place * 7919) % (len(data) + 1)
        inside = min(at, max(len(data) - 1, 0))
        if edit.action == "flip" and data:
            data[inside] ^= 1 << (edit.place % 8)
        elif edit.action == "set" and data:
            data[inside] = edit.place % 256
        elif edit.action == "cut":
            del data[at:]
        elif edit.action == "drop":
            del data[at : at + 1 + edit.place % 60]
        elif edit.action == "repeat":
            data[at:at] = data[at : at + 1 + edit.place % 200]
        elif edit.action == "insert":
            data[at:at] = str(edit.value).encode("utf-8", "replace")
        elif edit.action == "token":
            data[at:at] = TOKENS[edit.place % len(TOKENS)]
    return bytes(data)


# Documents ---------------------------------------------------------------------------------------------------------------------------

TREE_ACTIONS = ("replace", "remove", "rename", "add", "double", "move", "wrap", "nest", "number", "text")


def edit_tree(document: Any, edits: Sequence[Edit]) -> Any:
    """Apply edits to a document of mappings and lists, on a copy."""
    root = [copy.deepcopy(document)]
    for edit in edits:
        places = list(_list_places(root[0], root, 0))
        container, key = places[edit.place % len(places)]
        old = container[key]
        if edit.action == "replace":
            container[key] = copy.deepcopy(edit.value)
        elif edit.action == "remove" and container is not root:
            del container[key]
        elif edit.action == "rename" and isinstance(container, dict):
            container[str(edit.value)] = container.pop(key)
        elif edit.action == "add":
            if isinstance(old, dict):
                old[str(edit.value)] = copy.deepcopy(edit.value)
            elif isinstance(old, list):
                old.insert(edit.place % (len(old) + 1), copy.deepcopy(edit.value))
        elif edit.action == "double" and isinstance(container, list):
            container.insert(key, copy.deepcopy(old))
        elif edit.action == "move":
            other, place = places[(edit.place * 31 + 7) % len(places)]
            container[key] = copy.deepcopy(other[place])
        elif edit.action == "wrap":
            container[key] = [old]
        elif edit.action == "nest":
            for _ in range((3, 45, 60, 100, 150, 200)[edit.place % 6]):
                old = [old]
            container[key] = old
        elif edit.action == "number" and isinstance(old, int | float) and not isinstance(old, bool):
            is_small = isinstance(old, float) or abs(old) < 2**1000  # A longer number is no float.
            container[key] = (old * 10**30, -old, old + 1, old / 3 if is_small else old, float(old) if is_small else old, 0)[edit.place % 6]
        elif edit.action == "text":
            container[key] = str(old)[:1000]
    return root[0]


def _list_places(value: Any, container: Any, key: Any, depth: int = 0) -> Any:
    yield container, key
    if depth > 20:
        return
    if isinstance(value, dict):
        for name in list(value):
            yield from _list_places(value[name], value, name, depth + 1)
    elif isinstance(value, list):
        for place in range(len(value)):
            yield from _list_places(value[place], value, place, depth + 1)


# ONNX graphs -------------------------------------------------------------------------------------------------------------------------

ONNX_ACTIONS = (
    *("operator", "domain", "input", "output", "drop node", "repeat node", "swap nodes", "attribute", "drop attribute", "new attribute"),
    *("dims", "type", "values", "opset", "rows type", "rows shape", "new output", "drop output", "output type", "metadata", "name"),
    *("external", "twice", "constant", "ir", "optional"),
)
OPERATORS = (
    *("Relu", "Sigmoid", "Tanh", "Identity", "Add", "Mul", "Sub", "Div", "MatMul", "Gemm", "Softmax", "LogSoftmax", "Hardmax", "Cast"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "Shape", "ReduceMean", "ReduceSum"),
    *("ArgMax", "TopK", "Clip", "Pow", "Sqrt", "Log", "Exp", "Neg", "Abs", "Max", "Min", "Mean", "Where", "Greater", "Not", "CumSum"),
    *("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization", "LayerNormalization", "Dropout", "Gelu", "Selu"),
    *("QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan", "LSTM", "RandomNormalLike", "NonZero", "StringNormalizer", "Unknown"),
    *("ConstantOfShape", "Expand", "Tile", "Range", "Einsum", "Pad", "OneHot", "ScatterND", "GatherND", "Normalizer", "Scaler", "ZipMap"),
)
TYPES = (*range(17), TensorProto.INT4, TensorProto.UINT4, 22, 23, 25, 99)


def edit_onnx(model: onnx.ModelProto, edits: Sequence[Edit]) -> onnx.ModelProto:
    """Apply edits to an ONNX model, on a copy."""
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    for edit in edits:
        _edit_once(edited, edit)
    return edited


def _edit_once(model: onnx.ModelProto, edit: Edit) -> None:
    graph, place = model.graph, edit.place
    text = str(edit.value)[:200]
    number = _as_int(edit.value, place)
    nodes, held = list(graph.node), list(graph.initializer)
    names = [name for node in nodes for name in (*node.input, *node.output)] + [tensor.name for tensor in held] or ["x"]
    if edit.action in ("operator", "domain", "input", "output", "attribute", "drop attribute", "new attribute", "optional") and nodes:
        _edit_node(nodes[place % len(nodes)], edit, names, text, number)
    elif edit.action in ("drop node", "repeat node", "swap nodes") and nodes:
        at = place % len(nodes)
        if edit.action == "drop node":
            del nodes[at]
        elif edit.action == "repeat node":
            nodes.insert(at, nodes[at])
        else:
            nodes[at], nodes[at - 1] = nodes[at - 1], nodes[at]
        _refill(graph.node, nodes)
    elif edit.action in ("dims", "type", "values", "external", "twice", "constant") and held:
        _edit_tensor(graph, held[place % len(held)], edit, number)
    elif edit.action == "opset":
        model.opset_import[place % len(model.opset_import)].version = number if place % 2 else 7 + place % 20
    elif edit.action == "ir":
        model.ir_version = abs(number) % 2**31
    elif edit.action == "rows type" and graph.input:
        graph.input[0].type.tensor_type.elem_type = TYPES[place % len(TYPES)]
    elif edit.action == "rows shape" and graph.input:
        dimensions = graph.input[0].type.tensor_type.shape.dim
        if not dimensions or place % 5 == 0:
            dimensions.add().dim_value = number
        elif place % 5 == 1:
            del dimensions[place % len(dimensions)]
        else:
            dimensions[place % len(dimensions)].dim_value = number
    elif edit.action == "new output":
        graph.output.append(onnx.helper.make_tensor_value_info(names[place % len(names)], TYPES[place % 12], None))
    elif edit.action == "drop output" and graph.output:
        del graph.output[place % len(graph.output)]
    elif edit.action == "output type" and graph.output:
        graph.output[place % len(graph.output)].type.tensor_type.elem_type = TYPES[place % len(TYPES)]
    elif edit.action == "metadata":
        entry = model.metadata_props.add()
        entry.key, entry.value = ("cfptq.head", "cfptq.threshold", "cfptq.output", "other")[place % 4], text
    elif edit.action == "name":
        _rename_everywhere(graph, names[place % len(names)], text)


def _edit_node(node: onnx.NodeProto, edit: Edit, names: list[str], text: str, number: int) -> None:
    place = edit.place
    if edit.action == "operator":
        node.op_type = OPERATORS[place % len(OPERATORS)]
    elif edit.action == "domain":
        node.domain = ("", "ai.onnx.ml", "com.microsoft", "ai.onnx", text)[place % 5]
    elif edit.action == "input" and node.input:
        node.input[place % len(node.input)] = names[(place * 31 + 7) % len(names)]
    elif edit.action == "optional":
        node.input.append("" if place % 2 else names[place % len(names)])
    elif edit.action == "output" and node.output:
        node.output[place % len(node.output)] = names[(place * 31 + 7) % len(names)]
    elif edit.action == "drop attribute" and node.attribute:
        del node.attribute[place % len(node.attribute)]
    elif edit.action == "attribute" and node.attribute:
        attribute = node.attribute[place % len(node.attribute)]
        if attribute.type == attribute.FLOAT:
            attribute.f = float(number) if place % 2 else 1e-30
        elif attribute.type == attribute.INT:
            attribute.i = number
        elif attribute.type == attribute.INTS:
            attribute.ints[:] = [number, *attribute.ints] if place % 2 else [number for _ in attribute.ints]
        elif attribute.type == attribute.STRING:
            attribute.s = text.encode("utf-8", "replace")
        else:
            attribute.type = place % 15
    elif edit.action == "new attribute":
        name = ("axis", "axes", "perm", "to", "alpha", "transA", "transB", "keepdims", "kernel_shape", "pads", "epsilon", "group")[
            place % 12
        ]
        value: Any = [number, 1] if name in ("axes", "perm", "kernel_shape", "pads") else 0.5 if name in ("alpha", "epsilon") else number
        node.attribute.append(onnx.helper.make_attribute(name, value))


def _edit_tensor(graph: onnx.GraphProto, tensor: onnx.TensorProto, edit: Edit, number: int) -> None:
    place = edit.place
    if edit.action == "dims":
        if tensor.dims and place % 3 == 0:
            tensor.dims[place % len(tensor.dims)] = number
        elif tensor.dims and place % 3 == 1:
            tensor.dims[:] = list(tensor.dims)[::-1]
        else:
            tensor.dims.append(1 if place % 2 else number)
    elif edit.action == "type":
        tensor.data_type = TYPES[place % len(TYPES)]
    elif edit.action == "values" and tensor.raw_data:
        data = bytearray(tensor.raw_data)
        size = max(4, 4 * (place % 4))
        data[(place * 4) % len(data) // 4 * 4 :][:size] = b"\x00\x00\xc0\x7f" if place % 2 else b"\x00\x00\x80\x7f"
        start = (place * 4) % len(data) // 4 * 4
        data[start : start + 4] = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x00\x00")[place % 4][
            : len(data) - start
        ]
        tensor.raw_data = bytes(data)
    elif edit.action == "external":
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", ("../../../etc/passwd", "/etc/passwd", "absent.bin", "", ".")[place % 5]
        if place % 2:
            tensor.ClearField("raw_data")
    elif edit.action == "twice":
        graph.initializer.append(tensor)
    elif edit.action == "constant":
        moved = onnx.TensorProto()
        moved.CopyFrom(tensor)
        nodes = [onnx.helper.make_node("Constant", [], [tensor.name], value=moved), *graph.node]
        kept = [other for other in graph.initializer if other.name != tensor.name]
        _refill(graph.node, nodes)
        _refill(graph.initializer, kept)


def _rename_everywhere(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = new if value.name == old else value.name


def _refill(field: Any, entries: Sequence[Any]) -> None:
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(copies)


def _as_int(value: Any, place: int) -> int:
    if isinstance(value, bool | int) and abs(int(value)) < 2**62:
        return int(value)
    return (-1, 0, 1, 2, 3, 7, 2**31, 2**40, -5)[place % 9]
