"""Convolutions of every form that PyTorch has, through every toolchain."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from test_handovers import BACKENDS, INTEGER_INPUT, assert_agrees, result_on
from torch import nn

from cfptq.network import capture
from cfptq.pipeline.result import Result


class General(nn.Conv2d):
    """Calls the operation that decomposed graphs have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stride, padding, dilation = (list(map(int, each)) for each in (self.stride, self.padding, self.dilation))
        return torch.convolution(x, self.weight, self.bias, stride, padding, dilation, False, [0, 0], self.groups)


#: Input and output channels -> a convolution.
FORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "same": lambda i, o: nn.Conv2d(i, o, 3, padding="same", dilation=2),
    "same, even kernel": lambda i, o: nn.Conv2d(i, o, (2, 3), padding="same"),
    "valid": lambda i, o: nn.Conv2d(i, o, 3, padding="valid", stride=2),
    "window": lambda i, o: nn.Conv2d(i, o, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    "depthwise": lambda i, o: nn.Conv2d(i, o, 3, padding=1, groups=i, bias=False),
    "general": lambda i, o: General(i, o, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    "1-d": lambda i, o: nn.Conv1d(i, o, 3, stride=2, padding=1, groups=2),
    "1-d, same": lambda i, o: nn.Conv1d(i, o, 4, padding="same"),
}


@cache
def made(form: str) -> tuple[Result, torch.Tensor]:
    """A plan for two convolutions of ``form`` and a linear layer; and rows."""
    shape = (2, 9) if form.startswith("1-d") else (2, 9, 9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(FORMS[form](2, 4), nn.ReLU(), FORMS[form](4, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
        rows = torch.randn(2300, *shape)
        model(rows[:2])
    return result_on(capture(model, rows[:2]), rows[:300], INTEGER_INPUT), rows[300:]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "neural_compressor"])  # it hands over what PT2E does
def test_every_form_of_convolution_computes_what_the_twin_computes(backend: str, form: str, tmp_path: Path) -> None:
    result, people = made(form)
    assert [layer.kind[:4] for layer in result.plan.layers] == ["conv", "conv", "line"]
    assert_agrees(result, BACKENDS[backend](result, people, tmp_path), people)
