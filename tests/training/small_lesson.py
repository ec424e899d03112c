"""A small model, people who can act, and what a student is taught from them; shared by the tests of training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from cfptq.actions import ActionSet, Continuous
from cfptq.calibration import build_factual_set
from cfptq.network import Network, Predictor, as_predictor, capture
from cfptq.quantize import Activations, QuantizationPlan, quantize
from cfptq.training import Start, Supervision, TeacherSettings, supervise


@dataclass(frozen=True)
class Lesson:
    network: Network
    predictor: Predictor
    rows: Tensor
    labels: Tensor
    space: ActionSet
    plan: QuantizationPlan
    start: Start

    def supervision(self, settings: TeacherSettings | None = None, **more: object) -> Supervision:
        settings = settings or TeacherSettings(sides=(0.0, 2.0))
        return supervise(
            self.rows, self.labels, self.predictor, self.space, target=1, settings=settings, progress=False, **more  # type: ignore[arg-type]
        )  # fmt: skip


@cache
def lesson(rows: int = 400, bits: int = 4, seed: int = 0) -> Lesson:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
        model[4].bias.zero_()
        model[4].bias[0] = float((model(x)[:, 1] - model(x)[:, 0]).median())
    network = capture(model, x[:2])
    predictor = as_predictor(network.graph, example=x)
    labels = predictor.logits(x).argmax(dim=1)
    space = ActionSet.from_columns(x, features=[Continuous(f"c{n}", column=n) for n in range(6)], max_changes=3, favourable=1)
    points = build_factual_set(x, labels, predictor, target=1)

    def planned(width: int) -> QuantizationPlan:
        widths = {layer.name: width for layer in network.layers}
        return quantize(network, points, widths, method="start", seed=0, activations=Activations(input_bits=None), progress=False)

    return Lesson(network, predictor, x, labels, space, planned(bits), Start(network, planned(bits), {w: planned(w) for w in (2, 3, 4, 8)}))
