"""Small networks of the kinds that every backend is tested on, and plans for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from cfptq.calibration import CalibrationSet
from cfptq.network import Network, capture
from cfptq.quantize import CHANNEL_WIDTHS, QuantizationPlan, quantize

#: Rows that a backend is compared with the twin on.
TEST_ROWS = 10_000


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.first = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.second = nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.second(self.first(x))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def batch_norm_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


MODELS = {"mlp": (mlp, (12,)), "batch norm": (batch_norm_mlp, (12,)), "residual": (Residual, (12,)), "cnn": (convolutional, (1, 8, 8))}


@cache
def made(kind: str, seed: int = 0) -> tuple[Network, torch.Tensor]:
    """A random model whose BatchNorm has seen data, captured; and rows for it. Nobody changes them."""
    build, shape = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        model(torch.randn(64, *shape))
        rows = torch.randn(600, *shape)
    return capture(model.eval(), rows[:2]), rows


def factual(rows: torch.Tensor) -> CalibrationSet:
    count = len(rows)
    return CalibrationSet(
        rows, torch.zeros(count, dtype=torch.uint8), torch.ones(count), torch.arange(count), torch.zeros(count, dtype=torch.int64)
    )


def channel_bits(network: Network, widths: Sequence[int] = CHANNEL_WIDTHS, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """A width for each output channel, drawn at random."""
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> tuple[int, ...]:
        return tuple(widths[place] for place in torch.randint(len(widths), (channels,), generator=generator).tolist())

    return {layer.name: draw(layer.weight_shape[0]) for layer in network.layers}


def planned_by_channel(network: Network, rows: torch.Tensor, widths: Sequence[int] = CHANNEL_WIDTHS, **more: object) -> QuantizationPlan:
    """A plan with a random width for each output channel."""
    return quantize(network, factual(rows), channel_bits(network, widths), method="test", seed=0, **more)  # type: ignore[arg-type]


def planned(network: Network, rows: torch.Tensor, widths: tuple[int, ...] = (4, 3, 8, 4), **more: object) -> QuantizationPlan:
    bits = {layer.name: widths[number % len(widths)] for number, layer in enumerate(network.layers)}
    return quantize(network, factual(rows), bits, method="test", seed=0, **more)  # type: ignore[arg-type]
