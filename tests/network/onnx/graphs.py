"""Small ONNX graphs that tests of this folder are built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.module import OnnxModule

FLOAT, DOUBLE, HALF, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64
COLUMNS = 6


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (64, COLUMNS)), generator=torch.Generator().manual_seed(seed))


def drawn(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node from names in one string; ``domain`` is an attribute like the others."""
    return helper.make_node(operator, ["" if name == "-" else name for name in inputs.split()], outputs.split(), **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any],
    *,
    row: Sequence[Any] = (COLUMNS,),
    batch: Any = "N",
    kind: int = FLOAT,
    outputs: Mapping[str, int] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """A model from "x" (rows of shape ``row``) to "y", or to ``outputs`` (name -> element type)."""
    given = helper.make_tensor_value_info("x", kind, [batch, *row])
    answers = [helper.make_tensor_value_info(name, element, None) for name, element in (outputs or {"y": kind}).items()]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 4), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [given], answers, held), opset_imports=opsets, ir_version=10)


def perceptron(weights: Any = np.float32, **settings: Any) -> onnx.ModelProto:
    """Two layers without bias, x @ W, Relu, @ V."""
    nodes = [node("MatMul", "x W", "h"), node("Relu", "h", "k"), node("MatMul", "k V", "y")]
    return graph(nodes, {"W": drawn(COLUMNS, 8).astype(weights), "V": drawn(8, 2, seed=1).astype(weights)}, **settings)


def largest_difference(model: onnx.ModelProto, x: Tensor) -> float:
    """The largest difference between our reading and ONNX Runtime's run."""
    with torch.no_grad():
        ours = OnnxModule(model)(x)
    theirs = OnnxFile(model).run(x)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())
