"""ONNX files: read with plain words for what is wrong, run by ONNX Runtime as they are deployed."""

from __future__ import annotations

import os
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from cfptq.errors import FileError, ModelError
from cfptq.network.onnx.session import duplicate_shared_weights, int8_saturates, open_session

#: Endings of formats that unpickle, and so could run anything.
PICKLED = frozenset({".pt", ".pt2", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt"})
#: NumPy dtypes of the inputs that rows of columns can be cast to.
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
#: Words in the name of an output that mark the class scores among several outputs, best first.
SCORE_WORDS = ("logit", "probabilit", "score", "prob")

#: Words in the names of operators that compute with integers.
INTEGER_WORDS = ("Quantize", "QLinear", "Integer", "QGemm")

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def read_onnx(source: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """The model in a file, external data and all; a ``ModelProto`` is returned as it is.

    Raises:
        FileError: no such file, a pickled format, cut off or corrupt, external data missing, no ONNX graph in it.
    """
    if isinstance(source, onnx.ModelProto):
        model, where = source, "the ONNX model"
    else:
        path = Path(source)
        where = str(path)
        if path.suffix.lower() in PICKLED:
            raise FileError(f"{path} is in a format that unpickles: not accepted; export the model to ONNX, or pass the nn.Module")
        if not path.is_file():
            raise FileError(f"{path} is not there; give the path of an ONNX file")
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:
            raise FileError(f"{path} is no ONNX file, or it is cut off; export it again") from error
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as error:
            raise FileError(f"{path} keeps weights in a file beside it that cannot be read ({error}); copy both files together") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise FileError(f"{where} holds no ONNX graph, or it is cut off; export it again")
    return model


def find_rows_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one graph input that is no initializer.

    Raises:
        ModelError: none, or several.
    """
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"the ONNX model has {len(inputs)} inputs ({names}); export it with one float input that holds all columns")
    rows: onnx.ValueInfoProto = inputs[0]
    return rows


def find_score_output(model: onnx.ModelProto, output: str | None = None) -> str:
    """Name of the output with the class scores: the one asked for, the only float tensor, or the one named like scores.

    A scikit-learn classifier's (label, probabilities) gives the probabilities; its ZipMap, which turns them into a list of
    dictionaries, is looked through.

    Raises:
        ModelError: no such output, no float output, or several that could be meant.
    """
    renamed: dict[str, str] = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "ZipMap"}
    names: list[str] = [value.name for value in model.graph.output]
    if output is not None:
        if output not in names:
            raise ModelError(f"the ONNX model has no output {output!r}; its outputs are {', '.join(names)}")
        return renamed.get(output, output)
    scores: list[str] = [v.name for v in model.graph.output if v.name in renamed or v.type.tensor_type.elem_type in FLOATS]
    if len(scores) > 1:
        for word in SCORE_WORDS:
            likely = [name for name in scores if word in name.lower()]
            if len(likely) == 1:
                scores = likely
                break
    if len(scores) != 1:
        listed = ", ".join(names)
        raise ModelError(f"the ONNX model has outputs {listed}, {len(scores)} of them could be class scores; name one with output=")
    return renamed.get(scores[0], scores[0])


class OnnxFile:
    """An ONNX model in ONNX Runtime's CPU provider, its int8 products without saturation, graph optimizations as by default.

    Args:
        source: path of a file, or a model in memory.
        threads: intra-op threads of the session.
        output: the output to read, where the model has several (see :func:`find_score_output`).

    Attributes:
        model: the model read.
        fixed_rows: the batch size the file was exported with, where it accepts no other; rows are then padded to it.

    Raises:
        FileError: see :func:`read_onnx`; also where ONNX Runtime finds the graph invalid.
        ModelError: several inputs, an input that is not float, outputs that hold no scores, operators that this ONNX
            Runtime does not have.
    """

    def __init__(self, source: str | os.PathLike[str] | onnx.ModelProto, *, threads: int = 1, output: str | None = None) -> None:
        self.model = read_onnx(source)
        self.where = "the ONNX model" if isinstance(source, onnx.ModelProto) else os.fspath(source)
        find_rows_input(self.model)
        self.output = find_score_output(self.model, output)
        self._artefact = self._openable(source)
        self._threads = threads
        self._session = self._open(precise=True)
        self._input = self._session.get_inputs()[0]
        if self._input.type not in INPUT_TYPES:
            raise ModelError(f"{self.where} takes {self._input.type} rows; export it with a float32 input")
        self._dtype = INPUT_TYPES[self._input.type]
        rows = self._input.shape[0] if self._input.shape else None
        self.fixed_rows: int | None = rows if isinstance(rows, int) and rows > 0 else None

    def _openable(self, source: str | os.PathLike[str] | onnx.ModelProto) -> str | bytes:
        outputs = {value.name for value in self.model.graph.output}
        content: bytes
        if self.output not in outputs:
            content = _without_zipmap(self.model, self.output).SerializeToString()
        elif isinstance(source, onnx.ModelProto):
            content = source.SerializeToString()
        else:
            return os.fspath(source)
        return content

    def _open(self, *, precise: bool) -> onnxruntime.InferenceSession:
        try:
            return self._opened(precise)
        except Exception as error:
            said = summarize_error(error)
            if "NOT_IMPLEMENTED" in said or "is not a registered function/op" in said or "unsupported model IR version" in said.lower():
                version = onnxruntime.__version__
                raise ModelError(f"ONNX Runtime {version} cannot run {self.where}: {said}; upgrade it or lower the opset") from error
            raise FileError(f"{self.where} is no valid ONNX model: {said}; export it again") from error

    def _opened(self, precise: bool) -> onnxruntime.InferenceSession:
        try:
            return open_session(self._artefact, threads=self._threads, precise=precise)
        except Exception as error:
            if not precise or "existing tensor" not in str(error):
                raise
            model = onnx.load_from_string(self._artefact) if isinstance(self._artefact, bytes) else self.model
            return open_session(duplicate_shared_weights(model).SerializeToString(), threads=self._threads)

    @property
    def has_saturation_risk(self) -> bool:
        """Whether a default session may compute other sums than this one on this processor."""
        return int8_saturates() and any(word in node.op_type for node in self.model.graph.node for word in INTEGER_WORDS)

    def with_default_session(self) -> OnnxFile:
        """Return the same file in the session that a deployment opens unless told otherwise."""
        other = copy(self)
        other._session = self._open(precise=False)
        return other

    def run(self, x: Tensor) -> Tensor:
        """Raw float32 output for rows ``x``, computed by ONNX Runtime."""
        rows = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=self._dtype)
        fixed = self.fixed_rows
        if fixed is None or fixed == len(rows):
            return self._run(rows)
        padding = np.repeat(rows[-1:], -len(rows) % fixed, axis=0)
        padded = np.concatenate((rows, padding))
        parts = [self._run(padded[start : start + fixed]) for start in range(0, len(padded), fixed)]
        return torch.cat(parts)[: len(rows)]

    def _run(self, rows: np.ndarray[Any, Any]) -> Tensor:
        try:
            answer = self._session.run([self.output], {self._input.name: rows})[0]
        except Exception as error:
            raise ModelError(
                f"{self.where} takes rows of shape {self._input.shape} and fails on {list(rows.shape)}: {summarize_error(error)}"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(answer, dtype=np.float32))


def _without_zipmap(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    kept = [node for node in stripped.graph.node if node.op_type != "ZipMap"]
    del stripped.graph.node[:]
    stripped.graph.node.extend(kept)
    del stripped.graph.output[:]
    stripped.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return stripped


def summarize_error(error: Exception) -> str:
    """What an error says, without its stack of native frames."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
