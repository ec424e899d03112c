"""Every product with a constant weight is a linear layer, however the graph writes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import drawn, graph, largest_difference, node, rows

from cfptq.network import capture
from cfptq.network.onnx.module import OnnxModule

A, LAST = drawn(6, 8), [node("Relu", "h", "k"), node("MatMul", "k V", "y")]
#: Name -> first nodes, from x to h, and their constants. The weight is always "A".
FORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "alpha": ([node("Gemm", "x A b", "h", alpha=-0.5)], {"A": A, "b": drawn(8)}),
    "beta": ([node("Gemm", "x A b", "h", beta=3.0)], {"A": A, "b": drawn(8)}),
    "both, one number as bias": ([node("Gemm", "x A b", "h", alpha=2.0, beta=0.25, transB=1)], {"A": A.T.copy(), "b": drawn(1)}),
    "transA": ([node("Transpose", "x", "t"), node("Gemm", "t A b", "h", transA=1)], {"A": A, "b": drawn(8)}),
    "a bias that is computed": ([node("MatMul", "x B", "c"), node("Gemm", "x A c", "h", beta=2.0)], {"A": A, "B": drawn(6, 8, seed=3)}),
    "Gemm, weight on the left": (
        [node("Gemm", "A x b", "t", transA=1, transB=1, alpha=2.0), node("Transpose", "t", "h")],
        {"A": A, "b": drawn(8, 1)},
    ),
    "MatMul, weight on the left": (
        [node("Transpose", "x", "t"), node("MatMul", "A t", "u"), node("Transpose", "u", "h")],
        {"A": A.T.copy()},
    ),
    "an axis of size 1": ([node("MatMul", "x A", "t"), node("Squeeze", "t zero", "h")], {"A": A[None], "zero": np.array([0])}),
    "MatMul and transposition in one": ([node("FusedMatMul", "x A", "h", transB=1, domain="com.microsoft")], {"A": A.T.copy()}),
    "einsum": ([node("Einsum", "x A", "h", equation="ni,ij->nj")], {"A": A}),
    "einsum, weight first": ([node("Einsum", "A x", "h", equation="ji, ni -> nj")], {"A": A.T.copy()}),
    "einsum, outputs first": ([node("Einsum", "x A", "t", equation="ni,ij->jn"), node("Transpose", "t", "h")], {"A": A}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_product_in_any_form_is_a_layer_and_agrees(form: str) -> None:
    nodes, constants = FORMS[form]
    model = graph([*nodes, *LAST], {**constants, "V": drawn(8, 2)})
    assert largest_difference(model, rows()) < 1e-5
    assert {layer.name for layer in capture(OnnxModule(model), rows()).layers} >= {"A", "V"}


def test_an_einsum_over_two_axes_at_once_is_one_layer() -> None:
    # As the output projection of attention: heads and their widths are summed together.
    nodes = [node("Reshape", "x apart", "t"), node("Einsum", "t A", "h", equation="nkd,kdo->no"), *LAST]
    model = graph(nodes, {"apart": np.array([-1, 2, 3]), "A": drawn(2, 3, 8), "V": drawn(8, 2)})
    assert largest_difference(model, rows()) < 1e-5
    assert {layer.name: layer.weight_shape for layer in capture(OnnxModule(model), rows()).layers} == {"A": (8, 6), "V": (2, 8)}


@pytest.mark.parametrize("equation", ["nkd,kde->nke", "nkd,de->nke", "n...d,de->n...e"])
def test_other_einsums_agree(equation: str) -> None:
    weight = drawn(2, 3, 4) if "kde" in equation else drawn(3, 4)
    nodes = [node("Reshape", "x apart", "t"), node("Einsum", "t A", "y", equation=equation)]
    assert largest_difference(graph(nodes, {"apart": np.array([-1, 2, 3]), "A": weight}), rows()) < 1e-5


def test_mixing_of_tokens_by_a_weight_on_the_left_agrees() -> None:
    nodes = [node("Reshape", "x apart", "t"), node("MatMul", "A t", "y")]
    model = graph(nodes, {"apart": np.array([-1, 2, 3]), "A": drawn(4, 2)})
    assert largest_difference(model, rows()) < 1e-5
    assert torch.equal(OnnxModule(model).get_parameter("A.weight"), torch.from_numpy(drawn(4, 2)))


@pytest.mark.parametrize("name", ["head", "source", "operators", "training", "forward", "model.0"])
def test_a_layer_may_have_any_name(name: str) -> None:
    model = graph([node("MatMul", f"x {name}.weight", "y")], {f"{name}.weight": drawn(6, 2)})
    assert largest_difference(model, rows()) < 1e-6
    (layer,) = capture(OnnxModule(model), rows()).layers
    assert layer.name.removesuffix("_") == name


@pytest.mark.parametrize("value", [np.float32(0.3), np.array([0.3], np.float32), None])
def test_padding_of_any_value_is_captured(value: Any) -> None:
    constants = {"p": np.array([0, 1, 0, 2]), "V": drawn(9, 2)} | ({} if value is None else {"v": value})
    model = graph([node("Pad", "x p" if value is None else "x p v", "h"), node("MatMul", "h V", "y")], constants)
    assert largest_difference(model, rows()) < 1e-5
    assert capture(OnnxModule(model), rows())(rows(3, 6)).shape == (3, 2)
