"""Our reading of a file is compared with ONNX Runtime's run of it, and the first operator that differs is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from graphs import DOUBLE, HALF, drawn, graph, node, perceptron, rows
from torch import Tensor

from cfptq.errors import ModelError
from cfptq.network.onnx import operators
from cfptq.network.onnx.module import OnnxModule
from cfptq.network.onnx.verification import check_reading, draw_rows_between


def layers(middle: str, **settings: Any) -> Any:
    nodes = [node("MatMul", "x W", "h"), node("Add", "h b", "z"), node(middle, "z", "k"), node("MatMul", "k V", "y")]
    return graph(nodes, {"W": drawn(6, 8), "b": drawn(8), "V": drawn(8, 2)}, **settings)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_sound_readings_pass_in_every_precision(kind: Any) -> None:
    elements = {np.float32: 1, np.float16: HALF, np.float64: DOUBLE}
    check_reading(OnnxModule(perceptron(kind, kind=elements[kind])), rows())


def test_the_first_operator_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operators.OPERATORS, ("", "Softplus"), lambda entry, x: torch.nn.functional.softplus(x) + 0.01)
    with pytest.raises(ModelError, match="Softplus differs first"):
        check_reading(OnnxModule(layers("Softplus")), rows())


def test_a_difference_between_the_given_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_inside(entry: Any, x: Tensor) -> Tensor:
        return torch.where((x.abs() > 0.1) & (x.abs() < 0.9), x + 1, x)

    monkeypatch.setitem(operators.OPERATORS, ("", "Identity"), wrong_inside)
    corners = torch.tensor([[0.0], [1.0]])
    with pytest.raises(ModelError, match="Identity"):
        check_reading(OnnxModule(graph([node("Identity", "x", "y")], {}, row=(1,))), corners)


def test_rows_are_drawn_from_the_given_ones() -> None:
    x = rows()
    drawn_rows = draw_rows_between(x)
    assert bool((drawn_rows >= x.amin(0)).all()) and bool((drawn_rows <= x.amax(0)).all())
    assert torch.equal(drawn_rows, draw_rows_between(x))


def test_a_file_that_mixes_the_rows_of_a_batch_is_refused() -> None:
    nodes = [node("ReduceMean", "x", "m", axes=[0], keepdims=1), node("Sub", "x m", "c"), node("MatMul", "c V", "y")]
    with pytest.raises(ModelError, match="other rows of a batch"):
        check_reading(OnnxModule(graph(nodes, {"V": drawn(6, 2)}, opset=13)), rows())


def test_a_double_file_whose_digits_float32_does_not_hold_is_refused_in_those_words() -> None:
    nodes = [node("Sub", "x far", "c"), node("MatMul", "c V", "y")]
    model = graph(nodes, {"far": np.full((1, 6), 2.0**25 + 1), "V": drawn(6, 2).astype(np.float64)}, kind=DOUBLE)
    with pytest.raises(ModelError, match=r"Sub differs first.*float64.*float32"):
        check_reading(OnnxModule(model), rows() + 2**25)


@pytest.mark.parametrize("shape", [[1, 6], [1, -1]])
def test_a_fixed_number_of_rows_in_a_reshape_is_freed(shape: list[int]) -> None:
    nodes = [node("Reshape", "x s", "r"), node("MatMul", "r W", "h"), node("Relu", "h", "k"), node("MatMul", "k V", "y")]
    model = graph(nodes, {"s": np.array(shape), "W": drawn(6, 8), "V": drawn(8, 2)}, batch=1)
    check_reading(OnnxModule(model), rows())


def test_a_fixed_batch_that_cannot_be_freed_is_refused_by_name() -> None:
    model = graph([node("Expand", "c s", "e"), node("Concat", "x e", "y", axis=1)], {"c": drawn(1, 2), "s": [4, 2]}, batch=4)
    with pytest.raises(ModelError, match="dynamic batch"):
        check_reading(OnnxModule(model), rows(30, 6))


@pytest.mark.parametrize("operator", ["Shrink", "ThresholdedRelu"])
def test_a_row_on_the_other_side_of_a_jump_is_no_difference(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ours jumps one rounding step later, as another kernel may. One row lies between.
    border = 0.5 if operator == "Shrink" else 1.0
    monkeypatch.setitem(operators.OPERATORS, ("", operator), lambda entry, x: torch.where(x > border + 1e-6, x, torch.zeros_like(x)))
    x = rows(400, 6).abs() + 2
    x[7, 3] = border + 5e-7
    check_reading(OnnxModule(graph([node(operator, "x", "y")], {})), x)


def test_scores_without_a_row_for_each_row_are_refused() -> None:
    nodes = [node("MatMul", "x V", "z"), node("Transpose", "z", "y", perm=[1, 0])]
    for count in (24, 64, 2):
        with pytest.raises(ModelError, match="must return one"):
            check_reading(OnnxModule(graph(nodes, {"V": drawn(6, 2)})), rows(count, 6))


def test_an_input_of_an_unknown_type_is_refused() -> None:
    model = perceptron()
    model.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(ModelError, match="must be a float tensor, got the unknown type 99"):
        OnnxModule(model)
