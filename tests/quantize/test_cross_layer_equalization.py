"""Equalization changes scales, never the function."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from cfptq.calibration import CalibrationSet
from cfptq.network import Network, capture
from cfptq.quantize import Activations, equalize_network, fake_quantize_network, quantize


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        return self.c(h + torch.relu(self.b(h)))


MODELS = {
    "mlp": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.LeakyReLU(), nn.Linear(5, 2)), (6,), 2),
    "tanh is not homogeneous": (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), (6,), 0),
    "a residual is fed twice": (Skip(), (6,), 0),
    "cnn": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 2)),
        (1, 8, 8),
        1,
    ),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("kind", MODELS)
def test_the_function_is_the_same_and_only_what_may_be_scaled_is(kind: str) -> None:
    model, shape, pairs = MODELS[kind]
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    network = capture(model.eval(), x[:2])
    after = equalize_network(network, x)
    assert torch.allclose(after(x), network(x), atol=1e-4)
    moved = sum(not torch.equal(after.weight(layer.name), network.weight(layer.name)) for layer in network.layers)
    assert moved == (pairs + 1 if pairs else 0)


def test_activation_and_weight_meet_in_the_middle() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight[3] *= 50  # one channel with a heavy tail
        model[0].weight[5], model[0].bias[5] = 0, -1  # one that never fires
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    network = capture(model, x[:2])
    after = equalize_network(network, x)
    last = network.layers[1]
    activations = after.observe(x, [last.input])[last.input].amax(dim=0)
    weights = after.weight(last.name).abs().amax(dim=0)
    fires = activations > 0
    assert torch.allclose(activations[fires], weights[fires], rtol=1e-3)
    assert torch.allclose(after(x), network(x), atol=1e-4)


@pytest.mark.parametrize("exponent", [0.25, 0.75, 1.0])
def test_another_exponent_splits_the_product_of_activation_and_weight(exponent: float) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight[3] *= 50
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    network = capture(model, x[:2])
    after = equalize_network(network, x, exponent=exponent)
    last = network.layers[1]

    def sizes(one: Network) -> tuple[torch.Tensor, torch.Tensor]:
        return one.observe(x, [last.input])[last.input].amax(dim=0), one.weight(last.name).abs().amax(dim=0)

    activation, weight = sizes(network)
    product = activation * weight  # s = a^α / w^(1-α) leaves a / s = (a w)^(1-α) and w s = (a w)^α.
    torch.testing.assert_close(sizes(after)[0], product ** (1 - exponent), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(sizes(after)[1], product**exponent, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(after(x), network(x), atol=1e-4, rtol=1e-4)


def test_heights_that_are_given_stand_for_the_largest_values() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    network = capture(model, x[:2])
    last = network.layers[1]
    heights = torch.rand(8, generator=torch.Generator().manual_seed(1)) + 0.5
    after = equalize_network(network, x, heights={last.input: heights})
    scale = (heights / network.weight(last.name).abs().amax(dim=0)).sqrt()
    torch.testing.assert_close(after.weight(last.name), network.weight(last.name) * scale)


def test_between_fine_weights_every_channel_uses_the_whole_range() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with torch.no_grad():
        model[0].weight[3] *= 50
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    network = capture(model, x[:2])
    _, second, last = network.layers
    after = equalize_network(network, x, fine=[network.layers[0].name, second.name])
    seen = after.observe(x, [second.input, last.input])
    full, half = (seen[layer.input].amax(dim=0) for layer in (second, last))
    assert bool((full[full > 0] <= 1.001).all()) and float(full.median()) > 0.999
    assert float((half / after.weight(last.name).abs().amax(dim=0) - 1).abs().median()) < 1e-3
    assert int((full > 0).sum()) > 4 and int((half > 0).sum()) > 2
    assert torch.allclose(after(x), network(x), atol=1e-4)


def test_a_channel_that_hardly_ever_fires_leaves_room_for_what_rounding_makes_of_it() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # One row sees a little of it: the channel is the first number less the largest but for its last bit, exact on every processor.
        model[0].weight[2] = torch.eye(6)[0]
        model[0].bias[2] = -torch.nextafter(x[:, 0].max(), torch.tensor(0.0))
    network = capture(model, x[:2])
    names = [layer.name for layer in network.layers]
    assert 0 < float(network.observe(x, ["relu"])["relu"][:, 2].max()) < 1e-6
    for fine in ((), names):
        widths = dict.fromkeys(names, 8 if fine else 4)
        zeros = torch.zeros(200, dtype=torch.int64)
        rows = CalibrationSet(x, zeros.to(torch.uint8), torch.ones(200), torch.arange(200), zeros)
        plan = quantize(
            network, rows, widths, method="t", seed=0, activations=Activations(clip=False), equalize=True, sequential=True, progress=False
        )
        error = (fake_quantize_network(network, plan)(x) - network(x)).abs().max()
        spread = network(x).std(dim=0).max()
        assert float(error) < (0.05 if fine else 0.5) * float(spread)


def test_the_channels_of_a_linear_layer_over_tokens_are_on_the_last_axis() -> None:
    # As many tokens as channels, so that the wrong axis would fit too.
    model = nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 3), nn.Flatten(), nn.Linear(15, 2)).eval()
    with torch.no_grad():
        model[1].weight.mul_(torch.tensor([[100.0], [1.0], [1.0], [1.0], [0.01]]))
        model[1].bias.zero_()
    rows = torch.randn(64, 5)
    before = capture(model, rows)
    after = equalize_network(before, rows, fine=("1", "3"))
    torch.testing.assert_close(after(rows), before(rows), atol=1e-4, rtol=1e-4)
    hidden = after.observe(rows, [after.layer("3").input])[after.layer("3").input]
    torch.testing.assert_close(hidden.amax(dim=(0, 1)), torch.ones(5))
