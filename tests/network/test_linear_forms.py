"""Every product of a tensor and a weight matrix is captured as a linear layer that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfptq.network import capture, to_onnx_model
from cfptq.network.onnx.file import OnnxFile


class Products(nn.Module):
    """A function of the input and of the parameters W, V and b, whose shapes are given."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], w: tuple[int, ...], v: tuple[int, ...], b: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.function = function
        self.W, self.V, self.b = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in (w, v, b))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def rows(count: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "operator": (lambda m, x: (x @ m.W + m.b).relu() @ m.V, (6, 5), (5, 2), (5,)),
    "bias first": (lambda m, x: (m.b + torch.mm(x, m.W)).relu().matmul(m.V), (6, 5), (5, 2), (5,)),
    "transposed": (lambda m, x: (x @ m.W.T + m.b).relu() @ m.V.t(), (5, 6), (2, 5), (5,)),
    "left": (lambda m, x: ((m.W @ x.T).T + m.b).relu() @ m.V, (5, 6), (5, 2), (5,)),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.W, beta=2, alpha=0.5).relu() @ m.V, (6, 5), (5, 2), (5,)),
    "addmm, scalar": (lambda m, x: torch.addmm(m.b, x, m.W).relu() @ m.V, (6, 5), (5, 2), (1,)),
    "inner": (lambda m, x: torch.inner(torch.inner(x, m.W).relu(), m.V), (5, 6), (2, 5), (1,)),
    "tensordot": (lambda m, x: torch.tensordot(torch.tensordot(x, m.W, 1).relu(), m.V, ([1], [1])), (6, 5), (2, 5), (1,)),
    "einsum": (lambda m, x: torch.einsum("ki,ij->kj", torch.einsum("ni,ij->nj", x, m.W).relu(), m.V), (6, 5), (5, 2), (1,)),
    "einsum, weight first": (lambda m, x: torch.einsum("ij,ni->jn", m.W, x).T.relu() @ m.V, (6, 5), (5, 2), (1,)),
    "einsum, any axes": (lambda m, x: torch.einsum("...i,ij", x, m.W).relu() @ m.V, (6, 5), (5, 2), (1,)),
    "einsum, two axes": (
        lambda m, x: torch.einsum("nhd,hdo->no", torch.einsum("ni,hdi->nhd", x, m.W).relu(), m.V),
        (2, 4, 6),
        (2, 4, 2),
        (1,),
    ),
    "tensordot, two axes": (lambda m, x: torch.tensordot(torch.inner(x, m.W).relu(), m.V, ([2, 1], [0, 1])), (2, 4, 6), (4, 2, 2), (1,)),
    "an axis of size 1": (lambda m, x: (x[:, None] @ m.W).relu()[:, 0] @ m.V, (1, 6, 5), (5, 2), (1,)),
    "repeated for each row": (
        lambda m, x: torch.bmm(m.V.repeat(x.shape[0], 1, 1), torch.bmm(x[:, None], m.W.expand(x.shape[0], 6, 5)).relu().mT)[:, :, 0],
        (6, 5),
        (2, 5),
        (1,),
    ),
    "vector": (lambda m, x: (x @ m.W).relu() @ m.V + m.b, (6, 5), (5,), (1,)),
    "mv": (lambda m, x: torch.mv((x @ m.W).relu(), m.V), (6, 5), (5,), (1,)),
    "tokens": (lambda m, x: ((x[:, :, None] @ m.W + m.b).relu() @ m.V).mean(1), (1, 5), (5, 2), (5,)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_product_with_a_parameter_is_a_linear_layer(name: str) -> None:
    model = Products(*FORMS[name])
    network = capture(model, rows(4))
    assert [layer.name for layer in network.layers] == ["W", "V"] and not network.skipped
    assert {layer.kind for layer in network.layers} == {"linear"}
    for count in (1, 7):
        with torch.no_grad():
            torch.testing.assert_close(network(rows(count)), model(rows(count)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["operator", "bias first", "transposed", "addmm", "addmm, scalar"])
def test_a_vector_that_is_added_becomes_the_bias(name: str) -> None:
    model = Products(*FORMS[name])
    bias = capture(model, rows(4)).bias("W")
    assert bias is not None
    torch.testing.assert_close(bias, model.b.detach().expand(5) * (2 if name == "addmm" else 1))


def test_a_weight_that_is_used_twice_stays_in_float() -> None:
    model = Products(lambda m, x: (x @ m.W).relu() @ m.W.T @ m.V, (6, 5), (6, 2), (1,))
    network = capture(model, rows(4))
    assert [layer.name for layer in network.layers] == ["V"] and "W" in dict(network.skipped)
    torch.testing.assert_close(network(rows(3)), model(rows(3)))


FLOATS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "a matrix for each head": (lambda m, x: (x[:, None, None] @ m.W)[:, :, 0].flatten(1), (2, 6, 4)),
    "heads repeated for each row": (lambda m, x: (x[:, None, None] @ m.W.expand(x.shape[0], 2, 6, 4))[:, :, 0].flatten(1), (2, 6, 4)),
    "a letter in both": (lambda m, x: torch.einsum("nhi,hij->nhj", x.unflatten(1, (2, 3)), m.W).flatten(1), (2, 3, 4)),
    "a sum of products": (lambda m, x: (x[:, None] * m.W).sum(-1), (8, 6)),
    "a mean of products": (lambda m, x: (x[:, :, None] * m.W).mean(1), (6, 8)),
}


@pytest.mark.parametrize("name", FLOATS)
def test_a_weight_that_stays_in_float_is_listed(name: str) -> None:
    function, shape = FLOATS[name]
    network = capture(Products(lambda m, x: function(m, x).relu() @ m.V, shape, (8, 2), (1,)), rows(4))
    assert [layer.name for layer in network.layers] == ["V"] and list(dict(network.skipped)) == ["W"]


@pytest.mark.parametrize("name", ["einsum, two axes", "tensordot, two axes", "an axis of size 1", "repeated for each row"])
def test_the_exported_file_agrees(name: str) -> None:
    network = capture(Products(*FORMS[name]), rows(4))
    file = OnnxFile(to_onnx_model(network))
    for count in (1, 7):
        torch.testing.assert_close(file.run(rows(count)), network(rows(count)), atol=1e-5, rtol=1e-5)


def test_a_product_of_two_inputs_is_no_layer() -> None:
    model = Products(lambda m, x: torch.einsum("ni,nj->nij", x, x).flatten(1) @ m.W, (36, 2), (1,), (1,))
    assert [layer.name for layer in capture(model, rows(4)).layers] == ["W"]
