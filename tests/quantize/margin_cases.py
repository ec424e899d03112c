"""Small networks of every kind, their calibration rows, and how far a plan's margins are off; shared by the tests of margins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor, nn

from cfptq.calibration import CalibrationSet
from cfptq.network import DecisionRule, Head, Network, capture, class_logits, target_margin
from cfptq.quantize import Activations, QuantizationPlan, Rounding, fake_quantize_network, quantize

ROWS = 300

#: Errors of one plan over those of another.
Ratios = tuple[list[float], list[float]]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(h + torch.relu(self.second(h)))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)), (12,), Head.LOGITS),
    "one logit": (lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 1)), (12,), Head.LOGIT),
    "three classes": (lambda: nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 3)), (12,), Head.LOGITS),
    "a probability": (lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 1), nn.Sigmoid()), (12,), Head.PROBABILITY),
    "residual": (Residual, (12,), Head.LOGITS),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2, groups=2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
        ),
        (2, 6, 6),
        Head.LOGITS,
    ),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)), (4, 6), Head.LOGITS),
}

#: For each kind, a seed and a width at which margins gain much by either method: far more than the order of sums on a processor changes.
TELLING = {
    "mlp": (3, 4),
    "one logit": (4, 2),
    "three classes": (7, 2),
    "a probability": (4, 2),
    "residual": (5, 3),
    "cnn": (6, 3),
    "tokens": (6, 4),
}

#: What the benchmarks average over: seeds and widths.
MANY = tuple(itertools.product(range(3, 9), (2, 3, 4)))


@cache
def network_and_rows(kind: str, seed: int = 3) -> tuple[Network, CalibrationSet, CalibrationSet]:
    """A captured network, calibration rows near its boundary, and as many others."""
    build, shape, head = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = capture(build().eval(), torch.zeros(2, *shape))
    generator = torch.Generator().manual_seed(1)
    size = torch.Size(shape).numel()
    # A few directions carry most of the variance, as in real tables and images.
    spread = torch.randn(size, size, generator=generator) * torch.linspace(2, 0.1, size)
    x = (torch.randn(2 * ROWS, size, generator=generator) @ spread.mT / size**0.5).reshape(-1, *shape)
    target = torch.ones(2 * ROWS, dtype=torch.int64)
    margin = margins(network, x, target, head)
    weights = torch.exp(-margin.abs() / margin.std())

    def rows(half: slice) -> CalibrationSet:
        return CalibrationSet(x[half], torch.zeros(ROWS, dtype=torch.uint8), weights[half], torch.arange(ROWS), target[half])

    return network, rows(slice(0, ROWS)), rows(slice(ROWS, 2 * ROWS))


def planned(network: Network, rows: CalibrationSet, head: Head | None, rounding: Rounding, bits: int = 3) -> QuantizationPlan:
    widths = {layer.name: bits for layer in network.layers}
    settings = Activations(input_bits=None, clip=False)
    return quantize(
        network,
        rows,
        widths,
        method="test",
        seed=0,
        rounding=rounding,
        activations=settings,
        sequential=True,
        decision=None if head is None else DecisionRule(head),
        progress=False,
    )


def margins(model: nn.Module | Network, x: Tensor, target: Tensor, head: Head) -> Tensor:
    """The target margins of rows ``x``."""
    with torch.no_grad():
        return target_margin(class_logits(model(x), head), target)


def margin_error(network: Network, plan: QuantizationPlan, rows: CalibrationSet, head: Head) -> float:
    """Weighted mean squared error of the target margin."""
    wanted, given = (margins(f, rows.rows, rows.target, head) for f in (network, fake_quantize_network(network, plan)))
    return float((rows.weights * (given - wanted).square()).sum() / rows.weights.sum())


def error_ratios(
    kind: str,
    plans: Callable[[Network, CalibrationSet, Head, int], tuple[QuantizationPlan, QuantizationPlan]],
    cases: Iterable[tuple[int, int]],
) -> Ratios:
    """How much less margins err with the first plan than with the second, on the rows they are made on and on as many others.

    Args:
        cases: seeds and widths.
    """
    head = MODELS[kind][2]
    known, others = [], []
    for seed, bits in cases:
        network, rows, unseen = network_and_rows(kind, seed)
        better, worse = plans(network, rows, head, bits)
        for ratios, judged in ((known, rows), (others, unseen)):
            ratios.append(margin_error(network, better, judged, head) / margin_error(network, worse, judged, head))
        assert all(int(layer.integers.abs().max()) < 2 ** (bits - 1) for layer in better.layers)
    return known, others
