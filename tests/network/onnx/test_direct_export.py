"""ONNX written directly against torch.onnx.export and against torch itself."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from cfptq.models import MLP
from cfptq.network import capture, to_onnx_model
from cfptq.network.onnx.direct_export import export_directly

NAMES = ("input", "output", "batch")


class Calls(nn.Module):
    """A network that is whatever ``run`` does with one linear layer's output."""

    def __init__(self, run: Callable[[Tensor], Tensor], inputs: int = 6, outputs: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, outputs)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.first(x))


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


PLAIN = {
    "mlp": (MLP(6, hidden=(8, 8)), (6,)),
    "residual with BatchNorm": (MLP(6, hidden=(8, 8), batch_norm=True, residual=True), (6,)),
    "activations": (
        nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.2), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), nn.Softmax(1)),
        (6,),
    ),
    "one probability": (nn.Sequential(nn.Linear(6, 1), nn.Sigmoid()), (6,)),
    "joined": (Calls(lambda h: functional.log_softmax(torch.cat([h, torch.relu(h) * h], dim=1), dim=-1)), (6,)),
    "images": (
        images(
            nn.Conv2d(2, 4, 3, padding=(1, 0), stride=2), nn.ReLU(), nn.MaxPool2d(2, 1, padding=1), nn.Flatten(), nn.Linear(4 * 5 * 4, 2)
        ),
        (2, 8, 8),
    ),
    "grouped and pooled": (
        images(nn.Conv2d(2, 4, 3, groups=2, dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        (2, 8, 8),
    ),
    "padding by name": (images(nn.Conv2d(2, 4, 3, padding="same"), nn.Flatten(), nn.Linear(256, 2)), (2, 8, 8)),
    "signals": (images(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)), (2, 8)),
}

OTHER = {
    "a number added": (Calls(lambda h: h + 1), (6,)),
    "a scaled sum": (Calls(lambda h: torch.add(h, torch.relu(h), alpha=2)), (6,)),
    "an operation that is not listed": (Calls(functional.gelu), (6,)),
    "a pool with a ragged edge": (images(nn.Conv2d(2, 4, 3), nn.MaxPool2d(4, ceil_mode=True), nn.Flatten(), nn.Linear(16, 2)), (2, 8, 8)),
    "padding on one side": (images(nn.Conv2d(2, 4, 2, padding="same"), nn.Flatten(), nn.Linear(256, 2)), (2, 8, 8)),
    "linear on sequences": (nn.Sequential(nn.Linear(6, 4), nn.Flatten(), nn.Linear(12, 2)), (3, 6)),
}


def answers(model: onnx.ModelProto, rows: Tensor) -> Tensor:
    onnx.checker.check_model(model, full_check=True)
    return torch.from_numpy(ort.InferenceSession(model.SerializeToString()).run(None, {"input": rows.numpy()})[0])


@pytest.mark.parametrize("name", PLAIN)
def test_the_file_computes_what_the_module_computes(name: str) -> None:
    module, shape = PLAIN[name]
    rows = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    network = capture(module.eval(), rows[:2])
    model = export_directly(network, 21, NAMES)
    assert model is not None
    with torch.no_grad():
        assert torch.allclose(answers(model, rows), module(rows), atol=1e-5)
    assert model == to_onnx_model(network)


@pytest.mark.parametrize("name", OTHER)
def test_what_has_no_plain_form_is_left_to_torch(name: str) -> None:
    module, shape = OTHER[name]
    rows = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    network = capture(module.eval(), rows[:2])
    assert export_directly(network, 21, NAMES) is None
    with torch.no_grad():
        assert torch.allclose(answers(to_onnx_model(network), rows), module(rows), atol=1e-5)
