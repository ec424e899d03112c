"""Small models of every shape that capture must take, each with an example batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfptq.network import Network, capture

torch.set_num_threads(1)


def settle_batch_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm layers statistics and affine parameters as after training, so that folding them matters."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -1.0, 1.0), (module.running_var, 0.3, 3.0)):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.rand(module.weight.shape, generator=generator) - 0.3)
                    module.bias.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return model


class ResidualMLP(nn.Module):
    """Post-norm first block (folds), pre-norm second block (stays)."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 8)
        self.post = nn.BatchNorm1d(8)
        self.pre = nn.BatchNorm1d(8)
        self.block = nn.Linear(8, 8, bias=False)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.post(self.inlet(x)))
        return self.head(h + self.drop(self.block(torch.relu(self.pre(h)))))


class Sequence(nn.Module):
    """Conv1d over a sequence, then a linear layer on three dimensions whose batch is in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.mix = nn.Linear(4, 5)
        self.value = nn.Linear(4, 5, bias=False)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x))).permute(2, 0, 1)
        return self.head((torch.tanh(self.mix(h)) + self.value(h)).mean(0))


class Functional(nn.Module):
    """Weights without modules; a batch-dependent view; one probability a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))
        self.last = nn.ParameterDict({"weight": nn.Parameter(torch.randn(1, 4, generator=torch.Generator().manual_seed(2)))})

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(F.linear(x, self.first), 0.1, inplace=True)
        h = h.view(x.shape[0], 2, 4).sum(1) * torch.tensor([1.0, 2.0, 0.5, 1.0])
        return torch.sigmoid(F.linear(h, weight=self.last["weight"])).squeeze(-1)


class Branching(nn.Module):
    """torch.cond with a layer in each branch, layers before and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(6, 4)
        self.rich = nn.Linear(4, 4)
        self.poor = nn.Linear(4, 4)
        self.behind = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.before(x))
        h = torch.cond(h.mean() > 0.3, lambda t: self.rich(t), lambda t: self.poor(t).neg(), (h,))
        return self.behind(h)


class Concatenating(nn.Module):
    """Two branches fed by one tensor, concatenated; a weight-normed head; softmax output."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 4)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = x.mean(1, keepdim=True)
        return F.softmax(self.head(torch.cat([self.left(x), torch.relu(self.right(x)) + shift], dim=1)), dim=-1)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), (6,)),
    "batch norm mlp": (
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(), nn.Linear(8, 2)),
        (6,),
    ),
    "residual mlp": (ResidualMLP, (6,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, groups=2, bias=False, padding_mode="reflect", padding=1),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 8, 8),
    ),
    "sequence": (Sequence, (2, 5)),
    "functional": (Functional, (6,)),
    "cond": (Branching, (6,)),
    "concatenating": (Concatenating, (6,)),
}


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def captured(request: pytest.FixtureRequest) -> tuple[nn.Module, Network]:
    """A model, in evaluation mode, and its network: captured once for all the tests that only look at them."""
    build, shape = ARCHITECTURES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = settle_batch_norms(build())
    network = capture(model.train(), torch.randn(4, *shape, generator=torch.Generator().manual_seed(4)))
    return model.eval(), network
