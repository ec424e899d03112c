"""People whose class scores are exactly equal, because all hidden units are zero, keep their decision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import cfptq
from cfptq.actions import Continuous
from cfptq.network import as_predictor, decide


def network(outputs: int) -> nn.Module:
    """Two layers without bias, of which one row in eight leaves every hidden unit at zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, outputs, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0.5, 1]]))
        model[2].weight.mul_(3)
    return model


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("budget", [4.0, 8.0])
def test_tied_people_keep_their_decision(outputs: int, budget: float, tmp_path: Path) -> None:
    rows = torch.randn(600, 3, generator=torch.Generator().manual_seed(1))
    actions = cfptq.ActionSet.from_columns(rows, [Continuous(f"f{i}", column=i) for i in range(3)], favourable=1)
    model = network(outputs)
    before = as_predictor(model, example=rows)
    logits = before.logits(rows)
    tied = logits[:, 0] == logits[:, 1]
    assert 0.05 < float(tied.float().mean()) < 0.2
    result = cfptq.calibrate(model, [rows], actions, budget=budget, progress=False)
    result.to_onnx(tmp_path / "q.onnx")
    after = as_predictor(tmp_path / "q.onnx", example=rows).logits(rows)
    assert torch.equal(decide(after)[tied], decide(logits)[tied])
    assert float((decide(after) != decide(logits)).float().mean()) < 0.03
