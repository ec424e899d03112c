"""BatchNorm folding: exact where it can be, and not done where it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cfptq.network import Network, capture


def rows(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def settled(norm: nn.BatchNorm1d | nn.BatchNorm2d, seed: int = 1) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A BatchNorm as after training."""
    generator = torch.Generator().manual_seed(seed)
    norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
    norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.1)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.randn(norm.num_features, generator=generator))
            norm.bias.copy_(torch.randn(norm.num_features, generator=generator))
    return norm


def norms_left(network: Network) -> int:
    return sum("batch_norm" in str(node.target) for node in network.graph.graph.nodes)


def test_a_linear_layer_takes_the_affine_map_of_its_batch_norm():
    linear, norm = nn.Linear(4, 3), settled(nn.BatchNorm1d(3))
    network = capture(nn.Sequential(linear, norm), rows(5, 4))
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    torch.testing.assert_close(network.weight("0"), linear.weight.detach() * scale[:, None])
    torch.testing.assert_close(network.bias("0"), (linear.bias.detach() - norm.running_mean) * scale + norm.bias.detach())
    assert norms_left(network) == 0


def chain(*layers: nn.Module) -> nn.Sequential:
    """The layers, then a linear head on whatever they give."""
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("layers", "shape", "left"),
    [
        ((nn.Linear(4, 3, bias=False), settled(nn.BatchNorm1d(3))), (4,), 0),
        ((nn.Linear(4, 3), settled(nn.BatchNorm1d(3, affine=False))), (4,), 0),
        ((nn.Linear(4, 3), nn.Dropout(), settled(nn.BatchNorm1d(3, eps=0.1))), (4,), 0),
        ((nn.Conv1d(2, 4, 3, groups=2, bias=False), settled(nn.BatchNorm1d(4))), (2, 5), 0),
        ((nn.Conv2d(2, 4, 3, padding="same"), settled(nn.BatchNorm2d(4)), nn.ReLU(inplace=True)), (2, 4, 4), 0),
        ((settled(nn.BatchNorm1d(4)), nn.Linear(4, 3), nn.ReLU(), settled(nn.BatchNorm1d(3))), (4,), 2),
        # The channels of a three-dimensional tensor are its second dimension; a linear layer writes the last.
        ((nn.Linear(5, 6), settled(nn.BatchNorm1d(2))), (2, 5), 1),
    ],
    ids=["no bias", "not affine", "dropout between", "conv1d groups", "conv2d in place", "before the layer", "other channels"],
)
def test_outputs_are_the_same_and_only_what_can_be_folded_is(layers, shape, left):
    model = chain(*layers).eval()
    model(rows(2, *shape))  # the lazy head takes its size
    network = capture(model, rows(5, *shape))
    x = rows(32, *shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x), atol=1e-5, rtol=1e-5)
    assert norms_left(network) == left


class Shared(nn.Module):
    """The layer's output is used before its normalization, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), settled(nn.BatchNorm1d(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.norm(h) + h


def test_a_layer_whose_raw_output_is_needed_keeps_its_batch_norm():
    model = Shared()
    network = capture(model, rows(5, 4))
    x = rows(9, 4)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model.eval()(x))
    assert norms_left(network) == 1
    assert torch.equal(network.weight("layer"), model.layer.weight)


@pytest.mark.parametrize("count", [2, 3])
def test_several_batch_norms_in_a_row_are_all_folded(count: int):
    norms = [settled(nn.BatchNorm1d(3), seed) for seed in range(count)]
    model = nn.Sequential(nn.Linear(4, 3), *norms, nn.ReLU(), nn.Linear(3, 2)).eval()
    x = rows(5, 4)
    network = capture(model, x)
    assert norms_left(network) == 0
    torch.testing.assert_close(network(x), model(x))
