"""Every layer's input has the rows on its first axis, whatever the model does with its tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cfptq.network import Network, capture, to_onnx_model


class Tokens(nn.Module):
    """Each number becomes a token of four, and a function mixes the tokens with two layers."""

    def __init__(self, mix: Callable[[Tokens, Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.a, self.b, self.out = nn.Linear(1, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.attention = nn.MultiheadAttention(4, 2)
            self.conv = nn.Conv1d(1, 4, 4)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.mix(self, self.embed(x[:, :, None])))
        return out


def attend(model: Tokens, tokens: Tensor) -> Tensor:
    first = tokens.transpose(0, 1)
    mixed: Tensor = model.attention(first, first, first, need_weights=False)[0]
    return mixed.mean(0)


MIXES: dict[str, Callable[[Tokens, Tensor], Tensor]] = {
    "rows first": lambda m, t: m.b(m.a(t).relu()).mean(1),
    "tokens first": lambda m, t: m.b(m.a(t.transpose(0, 1)).relu()).mean(0),
    "rows outside": lambda m, t: m.b(m.a(t.reshape(-1, 4)).relu()).reshape(-1, 3, 4).mean(1),
    "tokens outside": lambda m, t: m.b(m.a(t.transpose(0, 1).reshape(-1, 4)).relu()).reshape(3, -1, 4).mean(0),
    "attention": attend,
}


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def changed_rows(network: Network, name: str) -> list[int]:
    """Return the positions on the first axis of a layer's input that change with row 2 of 6."""
    x, other = rows(6), rows(6)
    other[2] = rows(1, seed=1)[0]
    source = network.layer(name).input
    before, after = (network.observe(given, [source])[source] for given in (x, other))
    assert len(before) == 6
    return (before != after).flatten(1).any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", MIXES)
def test_the_rows_are_first_and_the_answers_the_same(name: str) -> None:
    model = Tokens(MIXES[name]).eval()
    network = capture(model, rows(5))
    assert not network.skipped and len(network.layers) == 4
    assert all(changed_rows(network, layer.name) == [2] for layer in network.layers)
    for count in (1, 2, 8):
        with torch.no_grad():
            torch.testing.assert_close(network(rows(count)), model(rows(count)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tokens first", "tokens outside", "attention"])
def test_what_was_moved_has_an_onnx_form_with_any_number_of_rows(name: str) -> None:
    model = to_onnx_model(capture(Tokens(MIXES[name]).eval(), rows(5)))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_a_convolution_over_rows_and_tokens_together_stays_in_float() -> None:
    model = Tokens(lambda m, t: m.conv(t.reshape(-1, 1, 4)).reshape(-1, 3, 4).mean(1)).eval()
    network = capture(model, rows(5))
    assert dict(network.skipped) == {"conv": "the first axis of its input does not hold the rows"}
    torch.testing.assert_close(network(rows(4)), model(rows(4)))


@pytest.mark.parametrize("name", ["rows first", "tokens outside"])
def test_a_model_that_looks_up_codes_is_run_on_codes_alone(name: str) -> None:
    class Coded(Tokens):
        """Each column is a code from 0 to 2, for which a token of four is looked up."""

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.mix(self, (self.embed.weight * torch.arange(1.0, 4.0)).t()[x.long()]))
            return out

    codes = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    model = Coded(MIXES[name]).eval()
    network = capture(model, codes)
    assert len(network.layers) == 3
    torch.testing.assert_close(network(codes), model(codes))
