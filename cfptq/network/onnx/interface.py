"""Inputs and outputs of an ONNX file, carried over to the file that replaces it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from cfptq.errors import FileError, ModelError
from cfptq.network.onnx.file import OUTPUT_KEY, derives_from, find_rows_input, get_fixed_rows, summarize_error

#: Operators with weights. What they compute from the rows changes when a model is quantized.
LAYERS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "LinearClassifier", "LinearRegressor", "MatMul"})


@dataclass(frozen=True)
class OnnxInterface:
    """Input, outputs, names, order and types of an ONNX file, with the nodes that compute outputs beside the scores.

    Attributes:
        shell: the file without the nodes that compute its scores, serialized. Its nodes read the scores, or the rows.
        scores: name of the tensor that holds the scores.
        scores_type: ONNX element type of that tensor.
        in_float: outputs that float nodes of the file compute beside the quantized ones.
    """

    shell: bytes
    scores: str
    scores_type: int
    in_float: tuple[str, ...] = ()

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a model with this interface that computes the scores as ``model`` does.

        Args:
            model: takes float32 rows under the file's name of the rows, and returns float32 scores as ``scores``. It is not changed.

        Raises:
            ModelError: a node of the shell cannot be converted to the opset of ``model``.
        """
        shell = _convert_shell(onnx.load_from_string(self.shell), _read_opset(model), self.scores, self.scores_type)
        dressed = onnx.ModelProto()
        dressed.CopyFrom(model)
        graph, (rows,) = dressed.graph, shell.graph.input
        own = {name for node in shell.graph.node for name in node.output} | {tensor.name for tensor in shell.graph.initializer}
        wide, narrow = rows.type.tensor_type.elem_type != TensorProto.FLOAT, self.scores_type != TensorProto.FLOAT
        taken = own | ({rows.name} if wide else set()) | ({self.scores} if narrow else set())
        _rename(graph, taken)
        nodes = list(graph.node)
        if wide:
            nodes.insert(0, helper.make_node("Cast", [rows.name], [f"{rows.name}{INNER}"], f"{rows.name}_to_float32", to=TensorProto.FLOAT))
        if narrow:
            kind = self.scores_type
            nodes.append(helper.make_node("Cast", [f"{self.scores}{INNER}"], [self.scores], f"{self.scores}_from_float32", to=kind))
        nodes.extend(shell.graph.node)
        copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        for field, values in (
            (graph.node, copied),
            (graph.input, list(shell.graph.input)),
            (graph.output, list(shell.graph.output)),
        ):
            del field[:]
            field.extend(values)
        graph.initializer.extend(shell.graph.initializer)
        _join_opsets(dressed, shell)
        helper.set_model_props(dressed, {entry.key: entry.value for entry in dressed.metadata_props} | {OUTPUT_KEY: self.scores})
        try:
            onnx.checker.check_model(dressed)
        except onnx.checker.ValidationError as error:
            if "'shape'" not in str(error):  # ONNX Runtime needs no shape of an output, and many files have none.
                raise ModelError(f"The outputs of the ONNX model cannot be kept ({summarize_error(error)}). Export it again.") from error
        return dressed

    def __str__(self) -> str:
        graph = onnx.load_from_string(self.shell).graph
        names = [value.name for value in graph.output]
        kind = TensorProto.DataType.Name(graph.input[0].type.tensor_type.elem_type).lower()
        among = f" among {', '.join(names)}" if len(names) > 1 else ""
        read = "" if kind == "float" else f"; it takes {kind}, and between its input and its scores all is computed in float32"
        return f"the ONNX file's scores are its {self.scores!r}{among}{read}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        shell = base64.b64encode(self.shell).decode("ascii")
        return {"shell": shell, "scores": self.scores, "scores_type": self.scores_type, "in_float": list(self.in_float)}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> OnnxInterface:
        """Read what ``to_dict`` returned.

        Raises:
            FileError: the content is not that of an interface.
        """
        try:
            shell = base64.b64decode(content["shell"], validate=True)
            if len(onnx.load_from_string(shell).graph.input) != 1:
                raise ValueError("its shell has other than one input")
            return OnnxInterface(shell, str(content["scores"]), int(content["scores_type"]), tuple(map(str, content["in_float"])))
        except Exception as error:
            raise FileError(f"The saved ONNX interface is damaged ({error}). Save the result again.") from error


#: Ending of the float32 tensors inside a file whose rows or scores have another type.
INNER = "_float32"


def read_interface(model: onnx.ModelProto, scores: str) -> OnnxInterface | None:
    """Read a file's interface, or return None where it is one float32 input and the scores as float32 alone.

    Args:
        model: the file's content, without local functions.
        scores: name of the tensor with the scores.

    Raises:
        ModelError: an output that is no float, such as a label, is computed from other tensors than the scores.
    """
    rows = find_rows_input(model)
    kinds = _read_types(model)
    scores_type = kinds.get(scores, TensorProto.FLOAT)
    outputs = [value.name for value in model.graph.output]
    if rows.type.tensor_type.elem_type == TensorProto.FLOAT and outputs == [scores] and scores_type == TensorProto.FLOAT:
        return None
    model = _split_labels(model)
    in_float = []
    for name in outputs:
        needed, is_from_rows = _select_tail(model, [name], scores)
        if not is_from_rows or not any(node.op_type in LAYERS for node in needed):
            continue
        if kinds.get(name) not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
            raise ModelError(
                f"Output {name!r} of the ONNX model must be computed from its scores {scores!r}, so that both agree after quantization. "
                f"Export the model without {name!r}, or name another output with output=."
            )
        in_float.append(name)
    nodes, _ = _select_tail(model, outputs, scores)
    shell = onnx.ModelProto()
    shell.CopyFrom(model)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in shell.graph.initializer if tensor.name in used]
    _replace(shell.graph.node, nodes)
    _replace(shell.graph.initializer, kept)
    _replace(shell.graph.input, [rows])
    del shell.graph.value_info[:]
    del shell.metadata_props[:]
    _free_rows(shell, get_fixed_rows(rows))
    return OnnxInterface(shell.SerializeToString(deterministic=True), scores, scores_type, tuple(in_float))


def _select_tail(model: onnx.ModelProto, outputs: Iterable[str], scores: str) -> tuple[list[onnx.NodeProto], bool]:
    """Return copies of the nodes that compute ``outputs`` from the scores, in order, and whether some of them read the rows."""
    wanted = set(outputs) - {scores}
    found: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if not wanted & set(node.output):
            continue
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        if kept.op_type == "ArgMax":
            source = kept.input[0]
            has_same_order = derives_from(model, scores, source) or derives_from(model, source, scores)
            kept.input[0] = scores if has_same_order else source
        found.append(kept)
        wanted |= {name for name in kept.input if name} - {scores}
    return found[::-1], find_rows_input(model).name in wanted


def _split_labels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which the labels of each LinearClassifier are computed from its scores."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in copied.graph.node:
        nodes.append(node)
        if node.op_type != "LinearClassifier" or len(node.output) != 2:
            continue
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        listed = given.get("classlabels_ints") or [label.decode() for label in given.get("classlabels_strings", [])]
        label, values = node.output
        element = TensorProto.INT64 if given.get("classlabels_ints") else TensorProto.STRING
        copied.graph.initializer.append(helper.make_tensor(f"{label}_classes", element, [len(listed)], listed))
        node.output[0] = f"{label}_of_node"
        nodes.append(helper.make_node("ArgMax", [values], [f"{label}_place"], axis=1, keepdims=0))
        nodes.append(helper.make_node("Gather", [f"{label}_classes", f"{label}_place"], [label]))
    _replace(copied.graph.node, nodes)
    return copied


def _rename(graph: onnx.GraphProto, taken: set[str]) -> None:
    """Give every tensor of ``graph`` whose name is in ``taken`` another name, in place."""
    for node in graph.node:
        node.input[:] = [f"{name}{INNER}" if name in taken else name for name in node.input]
        node.output[:] = [f"{name}{INNER}" if name in taken else name for name in node.output]
    for tensor in (*graph.initializer, *graph.value_info):
        tensor.name = f"{tensor.name}{INNER}" if tensor.name in taken else tensor.name


def _join_opsets(model: onnx.ModelProto, shell: onnx.ModelProto) -> None:
    """Import the domains of the shell's nodes, and raise the opset of ``model`` to what they need."""
    version = _read_opset(shell)
    needed = [onnx.defs.get_schema(node.op_type, version, "").since_version for node in shell.graph.node if node.domain in OWN_DOMAINS]
    for entry in model.opset_import:
        entry.version = max(entry.version, *needed, 1) if entry.domain in OWN_DOMAINS else entry.version
    known = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(entry for entry in shell.opset_import if entry.domain not in (*known, *OWN_DOMAINS))
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))


def _convert_shell(shell: onnx.ModelProto, opset: int, scores: str, scores_type: int) -> onnx.ModelProto:
    """Return the shell with nodes of ``opset`` where its own opset is older and writes one of its operators otherwise.

    Raises:
        ModelError: a node cannot be converted.
    """
    version = _read_opset(shell)
    old = [node.op_type for node in shell.graph.node if node.domain in OWN_DOMAINS and version < CHANGED_OPERATORS.get(node.op_type, 0)]
    if not old or version >= opset:
        return shell
    whole = onnx.ModelProto()
    whole.CopyFrom(shell)
    whole.graph.input.append(helper.make_tensor_value_info(scores, scores_type, None))
    _replace(whole.graph.output, [value for value in shell.graph.output if value.name != scores])
    try:
        converted = onnx.version_converter.convert_version(whole, opset)
    except Exception as error:
        raise ModelError(
            f"The ONNX model's outputs beside the scores are computed by {old[0]} of opset {version}, which opset {opset} writes "
            f"otherwise. Export it with opset {CHANGED_OPERATORS[old[0]]} or later."
        ) from error
    _replace(converted.graph.input, list(shell.graph.input))
    _replace(converted.graph.output, list(shell.graph.output))
    return converted


def _read_opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in OWN_DOMAINS), 1)


#: Names of ONNX's own domain.
OWN_DOMAINS = ("", "ai.onnx")
#: Operators that later opsets read otherwise, with the first opset of the present form.
CHANGED_OPERATORS = {
    **dict.fromkeys(("Hardmax", "LogSoftmax", "ReduceSum", "Softmax", "Split", "Squeeze", "Unsqueeze"), 13),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"), 18),
    **dict.fromkeys(("Clip", "Pad", "Slice", "Upsample"), 11),
}


def _read_types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        graph = model.graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


def _free_rows(shell: onnx.ModelProto, rows: int | None) -> None:
    """Give the input and the outputs any number of rows where the file has a fixed one."""
    for value in (*shell.graph.input, *shell.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if rows is not None and dimensions and dimensions[0].dim_value == rows:
            dimensions[0].dim_param = "batch"


def _replace(field: Any, values: Iterable[Any]) -> None:
    """Replace the entries of a repeated field by copies of ``values``."""
    copied = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copied)
