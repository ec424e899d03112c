"""The reference classifiers: shapes, layer names, and weights fixed by the seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cfptq.errors import ModelError
from cfptq.models import MLP, LogisticRegression


def test_layers_carry_the_names_that_bit_allocations_use() -> None:
    layers = [name for name, module in MLP(10, hidden=(8, 8)).named_modules() if isinstance(module, nn.Linear)]
    assert layers == ["hidden.0", "hidden.1", "head"]
    assert [name for name, module in LogisticRegression(10).named_modules() if isinstance(module, nn.Linear)] == ["head"]


def test_a_plain_mlp_is_linear_relu_linear_relu_linear() -> None:
    model = MLP(5, classes=3, hidden=(7, 4), seed=2)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    first, second = model.hidden
    expected = model.head(torch.relu(second(torch.relu(first(x)))))
    torch.testing.assert_close(model(x), expected)
    assert model(x).shape == (6, 3)


def test_a_residual_mlp_adds_the_input_where_the_width_is_kept() -> None:
    model = MLP(5, hidden=(7, 7), residual=True)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    below = torch.relu(model.hidden[0](x))
    torch.testing.assert_close(model(x), model.head(below + torch.relu(model.hidden[1](below))))


def test_batch_norm_stands_between_layer_and_relu() -> None:
    model = MLP(5, hidden=(7, 7), batch_norm=True)
    assert [type(norm) for norm in model.norm] == [nn.BatchNorm1d, nn.BatchNorm1d]
    model.eval()
    assert model(torch.zeros(2, 5)).shape == (2, 2)


@pytest.mark.parametrize("build", [lambda seed: MLP(9, seed=seed), lambda seed: LogisticRegression(9, seed=seed)])
def test_weights_depend_on_the_seed_alone_and_the_global_state_is_untouched(build) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(0).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = build(0).state_dict(), build(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_initial_weights_are_spread_as_pytorch_spreads_them() -> None:
    ours = MLP(100, hidden=(400,)).hidden[0]
    theirs = nn.Linear(100, 400)
    with torch.no_grad():
        assert ours.weight.abs().max() <= 0.1
        assert float(ours.weight.std()) == pytest.approx(float(theirs.weight.std()), rel=0.02)
        assert float(ours.bias.std()) == pytest.approx(0.1 / 3**0.5, rel=0.15)


@pytest.mark.parametrize("settings", [{"inputs": 0}, {"classes": 1}, {"hidden": (8, 0)}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_sizes_that_make_no_network_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        MLP(**{"inputs": 4, **settings})
