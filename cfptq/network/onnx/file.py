"""Reading ONNX files, and running them in ONNX Runtime as they are deployed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from cfptq.errors import FileError, ModelError
from cfptq.network.head import Head, as_head, compute_threshold_logit
from cfptq.network.onnx.raw_inputs import is_cut, without_preprocessing
from cfptq.network.onnx.session import add_zero_points, duplicate_shared_weights, int8_saturates, open_session
from cfptq.network.onnx.sizes import MAX_MODEL_BYTES, check_computed_sizes, check_elements, check_external_sizes, check_file_size

#: Endings of formats that unpickle. Reading them could run any code, and they are refused.
PICKLED = frozenset({".pt", ".pt2", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt"})
#: NumPy dtypes of the inputs that rows of columns can be cast to.
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
#: Names of outputs that mark the class scores among several outputs.
SCORE_NAMES = frozenset({"logit", "logits", "probability", "probabilities", "output_probability", "class_logits", "class_probabilities"})
#: Operators of one input that keep the order of a row's classes.
HEAD_OPERATORS = frozenset({"Cast", "Identity", "LogSoftmax", "Normalizer", "Sigmoid", "Softmax", "ZipMap"})

#: Metadata keys of the kind of output that a file's scores are, and of the threshold that it decides by.
HEAD_KEY, THRESHOLD_KEY = "cfptq.head", "cfptq.threshold"
#: Metadata key of the tensor that holds a file's scores.
OUTPUT_KEY = "cfptq.output"

#: Words in the types of operators that compute with integers.
INTEGER_WORDS = ("Quantize", "QLinear", "Integer", "QGemm")

#: Types of outputs that may hold labels.
LABELS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
#: Float types of outputs that may hold class scores.
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def read_onnx(source: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """Read an ONNX model and its external data.

    Args:
        source: path of a file, or a model in memory, which is returned as it is.

    Raises:
        FileError: the file is missing, pickled, cut off or corrupt, lacks its external data, is too large, or holds no ONNX
            graph.
    """
    if isinstance(source, onnx.ModelProto):
        model, where = source, "the ONNX model"
    else:
        path = Path(source)
        where = str(path)
        if path.suffix.lower() in PICKLED:
            raise FileError(f"{path} is in a format that unpickles, which is refused. Export the model to ONNX, or pass the nn.Module.")
        if not path.is_file():
            raise FileError(f"{path} does not exist. Give the path of an ONNX file.")
        check_file_size(path, MAX_MODEL_BYTES)
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:
            raise FileError(f"{path} is not an ONNX file, or it is cut off. Export it again.") from error
        check_elements(model, where)
        check_computed_sizes(model, where)
        try:
            check_external_sizes(model, path)
            onnx.load_external_data_for_model(model, str(path.parent))
        except FileError:
            raise
        except Exception as error:
            raise FileError(f"{path} keeps weights in a file beside it that cannot be read ({error}). Copy both files together.") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise FileError(f"There is no ONNX graph in {where}, or it is cut off. Export it again.")
    return model


def name_source(source: str | os.PathLike[str] | onnx.ModelProto) -> str:
    """Return the path of a file, or a phrase for a model in memory."""
    return "the ONNX model" if isinstance(source, onnx.ModelProto) else os.fspath(source)


def get_fixed_rows(rows: onnx.ValueInfoProto) -> int | None:
    """Return the only number of rows that a graph input takes, or None where it takes any."""
    dimensions = rows.type.tensor_type.shape.dim
    return dimensions[0].dim_value if dimensions and dimensions[0].dim_value > 0 else None


def find_rows_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the only graph input that is not an initializer.

    Raises:
        ModelError: the graph has no such input or several, or its type is not float.
    """
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"The ONNX model must have one input, got {len(inputs)} ({names}). Export it with one float input.")
    rows: onnx.ValueInfoProto = inputs[0]
    element = rows.type.tensor_type.elem_type
    if element not in FLOATS:
        kind = name_element_type(element) if rows.type.HasField("tensor_type") else "no tensor"
        raise ModelError(f"The input {rows.name!r} of the ONNX model must be a float tensor, got {kind}. Export it with a float32 input.")
    return rows


def name_element_type(element: int) -> str:
    """Return the name of an ONNX element type, or its number where it has none."""
    try:
        name: str = onnx.TensorProto.DataType.Name(element)
        return name.lower()
    except ValueError:
        return f"the unknown type {element}"


def takes_halves(source: str | os.PathLike[str] | onnx.ModelProto) -> bool:
    """Return whether a model takes its rows in half precision."""
    return find_rows_input(without_preprocessing(read_onnx(source))).type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def find_score_output(model: onnx.ModelProto, output: str | None = None) -> str:
    """Return the name of the output that holds the class scores.

    It is the output asked for, or that which the file's metadata names, or else the only float tensor. Among several, it is the only one
    with a name of ``SCORE_NAMES``, or the one that all others are computed from by operators of ``HEAD_OPERATORS`` alone. A
    scikit-learn classifier's (label, probabilities) gives the probabilities. A ZipMap, which turns them into a list of dictionaries, is
    skipped.

    Args:
        model: the model.
        output: the output to read, or None.

    Raises:
        ModelError: there is no such output, no float output, or several that may hold class scores.
    """
    zipped: dict[str, str] = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "ZipMap"}
    names: list[str] = [value.name for value in model.graph.output]
    listed = ", ".join(names)
    if output is not None:
        if output not in names and output not in zipped.values():
            raise ModelError(f"output must be one of the ONNX model's outputs ({listed}), got {output!r}.")
        return zipped.get(output, output)
    recorded = next((entry.value for entry in model.metadata_props if entry.key == OUTPUT_KEY), "")
    if recorded in names or recorded in zipped.values():
        return recorded
    scores: list[str] = [v.name for v in model.graph.output if v.name in zipped or v.type.tensor_type.elem_type in FLOATS]
    if len(scores) > 1:
        named = [name for name in scores if name.lower() in SCORE_NAMES]
        roots = [name for name in scores if all(derives_from(model, other, name) for other in scores if other != name)]
        scores = named if len(named) == 1 else roots[:1] or scores
    if len(scores) != 1:
        raise ModelError(
            f"The ONNX model must have one output that may hold class scores, got {len(scores)} among its outputs {listed}. "
            "Name the right one with output=."
        )
    return zipped.get(scores[0], scores[0])


def derives_from(model: onnx.ModelProto, head: str, source: str) -> bool:
    """Return whether ``head`` is computed from ``source`` alone, by operators that keep each row's order of classes.

    Args:
        model: the model.
        head: name of a tensor.
        source: name of another tensor, or of the same.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    name = head
    while name != source:
        node = makers.get(name)
        if node is None or node.op_type not in HEAD_OPERATORS or len(node.input) != 1:
            return False
        name = node.input[0]
    return True


def read_decision_rule(model: onnx.ModelProto) -> tuple[Head | None, float | None]:
    """Return the head and the threshold that a file records in its metadata, each None where it records none.

    Raises:
        ModelError: a recorded value is not a head, or not a threshold between 0 and 1.
    """
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    try:
        threshold = float(recorded[THRESHOLD_KEY]) if recorded.get(THRESHOLD_KEY) else None
        compute_threshold_logit(threshold)
        return as_head(recorded.get(HEAD_KEY) or None), threshold
    except (ValueError, ModelError) as error:
        raise ModelError(
            f"The metadata {HEAD_KEY} and {THRESHOLD_KEY} of the ONNX model must hold a head and a number between 0 and 1, got "
            f"{recorded.get(HEAD_KEY)!r} and {recorded.get(THRESHOLD_KEY)!r}. Correct them, or remove both entries."
        ) from error


class OnnxFile:
    """An ONNX model in ONNX Runtime's CPU provider, with int8 products that do not saturate and default graph optimizations.

    Args:
        source: path of a file, or a model in memory.
        threads: intra-op threads of the session.
        output: the output to read, where the model has several (see ``find_score_output``).
        where: name of the model in messages. By default the path, or a phrase for a model in memory.

    Attributes:
        model: the model that was read.
        where: the file's path, or a phrase for a model in memory.
        output: name of the output that is read.
        head: kind of output that the file records, or None.
        threshold: decision threshold that the file records, or None.
        fixed_rows: the only batch size that the file accepts, or None. Rows are padded to it.

    Raises:
        FileError: the file cannot be read (see ``read_onnx``), or ONNX Runtime finds the graph invalid.
        ModelError: the model has several inputs, an input that is not float, or no output of scores, or this ONNX Runtime lacks
            an operator.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | onnx.ModelProto,
        *,
        threads: int = 1,
        output: str | None = None,
        where: str | None = None,
    ) -> None:
        self.model = without_preprocessing(read_onnx(source))
        self.where = where or name_source(source)
        source = self.model if is_cut(self.model) else source
        find_rows_input(self.model)
        self.output = find_score_output(self.model, output)
        self.head, self.threshold = read_decision_rule(self.model)
        self._artefact = self._prepare_artefact(source)
        self._threads = threads
        self._session = self._open(precise=True)
        self._input = self._session.get_inputs()[0]
        self._dtype = INPUT_TYPES[self._input.type]
        self.fixed_rows = get_fixed_rows(find_rows_input(self.model))

    def _prepare_artefact(self, source: str | os.PathLike[str] | onnx.ModelProto) -> str | bytes:
        """Return the path or the content that sessions open, without a ZipMap behind the scores."""
        outputs = {value.name for value in self.model.graph.output}
        content: bytes
        if self.output not in outputs:
            content = _remove_zipmap(source if isinstance(source, onnx.ModelProto) else self.model, self.output).SerializeToString()
        elif isinstance(source, onnx.ModelProto):
            content = source.SerializeToString()
        else:
            return os.fspath(source)
        return content

    def _open(self, *, precise: bool) -> onnxruntime.InferenceSession:
        """Open a session, and explain why where ONNX Runtime cannot."""
        try:
            return self._open_unshared(precise)
        except Exception as error:
            message = summarize_error(error)
            is_unsupported = (
                "NOT_IMPLEMENTED" in message
                or "is not a registered function/op" in message
                or "unsupported model IR version" in message.lower()
            )
            if is_unsupported:
                version = onnxruntime.__version__
                raise ModelError(f"ONNX Runtime {version} cannot run {self.where} ({message}). Upgrade it, or lower the opset.") from error
            raise FileError(f"ONNX Runtime finds {self.where} invalid ({message}). Export it again.") from error

    def _open_unshared(self, precise: bool) -> onnxruntime.InferenceSession:
        """Open a session of the file, changed in memory where a precise session of ONNX Runtime requires it.

        See ``add_zero_points`` and ``duplicate_shared_weights``.
        """
        completed = add_zero_points(self.model) if precise else None
        if completed is not None:
            self._artefact = self._prepare_artefact(completed)
        try:
            return open_session(self._artefact, threads=self._threads, precise=precise)
        except Exception as error:
            if not precise or "existing tensor" not in str(error):
                raise
            model = onnx.load_from_string(self._artefact) if isinstance(self._artefact, bytes) else self.model
            return open_session(duplicate_shared_weights(model).SerializeToString(), threads=self._threads)

    @property
    def has_saturation_risk(self) -> bool:
        """Return whether a default session may compute other sums than this one on this processor."""
        return int8_saturates() and any(word in node.op_type for node in self.model.graph.node for word in INTEGER_WORDS)

    def with_default_session(self) -> OnnxFile:
        """Return the same file in the session that a deployment opens by default."""
        other = copy(self)
        other._session = self._open(precise=False)
        return other

    def run(self, x: Tensor) -> Tensor:
        """Run the file in ONNX Runtime.

        Args:
            x: rows of the shape that the graph takes.

        Returns:
            The raw output as float32.

        Raises:
            ModelError: the session fails, for instance on rows of another shape.
        """
        rows = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=self._dtype)
        fixed = self.fixed_rows
        if fixed is None or fixed == len(rows):
            return self._run(rows)
        padding = np.repeat(rows[-1:], -len(rows) % fixed, axis=0)
        padded = np.concatenate((rows, padding))
        parts = [self._run(padded[start : start + fixed]) for start in range(0, len(padded), fixed)]
        return torch.cat(parts)[: len(rows)]

    def run_tensors(self, x: Tensor, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Run the file once for several of its outputs, each in its own type.

        Args:
            x: (N, ...) rows of the shape that the graph takes.
            names: names of outputs of the graph.
        """
        rows = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=self._dtype)
        return dict(zip(names, self._session.run(list(names), {self._input.name: rows}), strict=True))

    def run_labels(self, x: Tensor) -> np.ndarray[Any, Any] | None:
        """Run the file for its labels (N,), or return None where no output or several may hold them.

        Args:
            x: (N, ...) rows of the shape that the graph takes.
        """
        names = [value.name for value in self.model.graph.output if value.type.tensor_type.elem_type in LABELS]
        if len(names) != 1 or self.fixed_rows is not None:
            return None
        has_zipmap = self.output not in {value.name for value in self.model.graph.output}
        try:
            session = open_session(self.model.SerializeToString(), threads=self._threads) if has_zipmap else self._session
            answer = session.run(names, {self._input.name: np.ascontiguousarray(x.detach().cpu().numpy(), dtype=self._dtype)})[0]
        except Exception:  # The scores can be read without the labels.
            return None
        return np.asarray(answer).reshape(-1) if np.size(answer) == len(x) else None

    def _run(self, rows: np.ndarray[Any, Any]) -> Tensor:
        try:
            answer = self._session.run([self.output], {self._input.name: rows})[0]
        except Exception as error:
            raise ModelError(
                f"Rows for {self.where} must have the shape {self._input.shape}, got {list(rows.shape)}. "
                f"ONNX Runtime fails on them ({summarize_error(error)})."
            ) from error
        return torch.from_numpy(np.ascontiguousarray(answer, dtype=np.float32))


def _remove_zipmap(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return a copy of ``model`` without ZipMap nodes, whose only output is the tensor ``output``."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    kept = [node for node in stripped.graph.node if node.op_type != "ZipMap"]
    del stripped.graph.node[:]
    stripped.graph.node.extend(kept)
    del stripped.graph.output[:]
    stripped.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return stripped


def summarize_error(error: Exception) -> str:
    """Return the first line of an error's message, without native stack frames, or the error's type where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
