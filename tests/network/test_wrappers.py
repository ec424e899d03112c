"""Modules inside wrappers are found, and modules that cannot be called with one tensor are refused by the names of their inputs."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cfptq.errors import ModelError
from cfptq.network import as_predictor, capture
from cfptq.network.state import preserved_state
from cfptq.pipeline.inputs import as_module


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).eval()


def rows(count: int = 6) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.body(*inputs)
        return out


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, numbers: Tensor, region: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.layer(numbers) * scale + region
        return out


class KeywordOnly(nn.Module):
    def forward(self, *, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    "wrapped",
    [
        torch.compile(mlp(), backend="eager"),
        nn.DataParallel(mlp()),
        AveragedModel(mlp()),
        nn.DataParallel(torch.compile(mlp(), backend="eager")),
    ],
    ids=["compile", "data-parallel", "averaged", "both"],
)
def test_a_wrapped_module_is_captured_as_the_module_inside(wrapped: nn.Module) -> None:
    network = capture(wrapped, rows())
    assert [layer.name for layer in network.layers] == ["0", "3"]
    torch.testing.assert_close(network(rows()), mlp()(rows()))
    torch.testing.assert_close(as_predictor(wrapped, example=rows(), head="logits").logits(rows()), mlp()(rows()))


def test_a_forward_of_any_number_of_inputs_is_given_one() -> None:
    network = capture(Variadic().eval(), rows())
    assert [layer.name for layer in network.layers] == ["body.0", "body.3"]
    torch.testing.assert_close(network(rows(9)), mlp()(rows(9)))


@pytest.mark.parametrize("read", [capture, lambda model, example: as_predictor(model, example=example)])
@pytest.mark.parametrize(("model", "says"), [(Pair(), "numbers and region.* wrap it"), (KeywordOnly(), "takes none")])
def test_a_module_that_does_not_take_one_tensor_is_refused_by_its_inputs(read, model: nn.Module, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        read(model, rows())


def test_script_modules_are_refused_where_they_stand() -> None:
    traced = torch.jit.trace(mlp(), rows())
    with pytest.raises(ModelError, match="must not be a ScriptModule"):
        capture(traced, rows())
    with pytest.raises(ModelError, match="'0' must not be a ScriptModule"):
        capture(nn.Sequential(traced, nn.Linear(2, 2)), rows())


def test_a_script_module_can_be_run_and_is_left_as_it_was() -> None:
    traced = torch.jit.trace(mlp(), rows())
    before = {name: value.clone() for name, value in traced.named_buffers()}
    with preserved_state(traced):
        next(value for name, value in traced.named_buffers() if name.endswith("running_mean")).add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in traced.named_buffers())
    torch.testing.assert_close(as_predictor(traced, example=rows(), head="logits").logits(rows()), mlp()(rows()))


@pytest.mark.parametrize(
    ("last", "advice"),
    [
        (lambda y: y.double(), "End the forward with .float()"),
        (lambda y: y.half(), "End the forward with .float()"),
        (lambda y: y.argmax(1), "Return the scores from which the classes are computed"),
        (lambda y: y.t(), "Keep the batch as the first dimension"),
        (lambda y: y / 0 - y / 0, "Check its weights, the scale of the rows"),
    ],
)
def test_an_output_of_another_kind_is_refused_with_advice(last: Callable[[Tensor], Tensor], advice: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return last(self.layer(x))

    with pytest.raises(ModelError) as caught:
        capture(Other(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    assert advice in str(caught.value)


def test_models_of_other_kinds_are_refused_with_advice() -> None:
    layer = nn.Linear(4, 2)
    program = torch.export.export(layer, (torch.zeros(2, 4),))
    for model, advice in (
        (program, "Give the nn.Module that was exported"),
        (layer.state_dict(), "Load it with load_state_dict"),
        (lambda rows: rows, "cfptq.audit takes functions too"),
        (LogisticRegression(), "Export the estimator to ONNX"),
        (onnx.ModelProto(), "Write it to a file with onnx.save"),
    ):
        with pytest.raises(ModelError) as caught:
            as_module(model)
        assert advice in str(caught.value)
