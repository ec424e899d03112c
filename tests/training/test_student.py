"""The student computes with its plan's integers, before and after training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_lesson import lesson
from torch import nn

from cfptq.calibration import build_factual_set
from cfptq.errors import ModelError
from cfptq.network import as_predictor, capture
from cfptq.quantize import Activations, QuantizationPlan, fake_quantize_network, quantize
from cfptq.training import Start, Student


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_training_starts_at_the_plans_integers(bits: int) -> None:
    taught = lesson(bits=bits)
    student = Student(taught.start)
    for own, planned in zip(student.to_plan("start").layers, taught.plan.layers, strict=True):
        assert torch.equal(own.integers, planned.integers)
        assert torch.equal(own.scale, planned.scale)


@pytest.mark.parametrize("learned_clips", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_what_is_exported_computes_what_was_trained(learned_clips: bool, held: bool) -> None:
    taught = lesson()
    student = Student(taught.start, learned_clips=learned_clips)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for step in range(20):
        if held and step == 10:
            student.freeze_integers()
        optimizer.zero_grad()
        (student(taught.rows) - taught.predictor.logits(taught.rows)).square().mean().backward()
        optimizer.step()
    plan = student.to_plan("trained")
    assert any(not torch.equal(new.integers, old.integers) for new, old in zip(plan.layers, taught.plan.layers, strict=True))
    with torch.no_grad():
        apart = (student(taught.rows) - fake_quantize_network(taught.network, plan)(taught.rows)).abs().amax(dim=1)
    assert float((apart < 1e-4).float().mean()) >= 0.99


def test_held_integers_stay_while_the_rest_is_trained() -> None:
    taught = lesson()
    student = Student(taught.start)
    student.freeze_integers()
    before = student.to_plan("held")
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        student(taught.rows).square().mean().backward()
        optimizer.step()
    after = student.to_plan("held")
    for old, new in zip(before.layers, after.layers, strict=True):
        assert torch.equal(old.integers, new.integers)
        assert not torch.equal(old.scale, new.scale)


def test_a_choice_with_gradient_computes_with_the_chosen_width_and_tells_the_policy_about_all() -> None:
    taught = lesson()
    student = Student(taught.start)
    choice = torch.eye(4)[[1, 3, 2]].requires_grad_()
    student.set_bits(choice)
    output = student(taught.rows)
    assert student.bits == (3, 8, 4)
    output.square().sum().backward()
    assert bool((choice.grad.abs() > 0).any(dim=1).all()) and int((choice.grad != 0).sum()) == 12
    steps = student.layers[0].steps.grad
    assert bool((steps[1] != 0).any()) and not bool(steps[[0, 2, 3]].any())
    student.set_bits((3, 8, 4))
    # A sum in another order may round a single activation to the next step.
    apart = (student(taught.rows) - output).abs().amax(dim=1)
    assert float((apart < 1e-4).float().mean()) >= 0.99


def test_pruned_weights_are_zero_and_stay_so() -> None:
    taught = lesson()
    student = Student(taught.start)
    student.prune(0.5)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        student(taught.rows).square().mean().backward()
        optimizer.step()
    for layer in student.to_plan("pruned").layers:
        assert float((layer.integers == 0).float().mean()) >= 0.5


def test_training_keeps_zeros_and_signs_of_the_network() -> None:
    taught = lesson()
    network = taught.start.network
    blind = network.with_parameters(
        {layer.name: (network.weight(layer.name) * (network.weight(layer.name) > 0), network.bias(layer.name)) for layer in network.layers}
    )

    def keep_positive(plan: QuantizationPlan) -> QuantizationPlan:
        return replace(plan, layers=tuple(replace(layer, integers=layer.integers.clamp(min=0)) for layer in plan.layers))

    uniform = {bits: keep_positive(plan) for bits, plan in taught.start.uniform.items()}
    student = Student(Start(blind, keep_positive(taught.start.plan), uniform), keep=("zeros", "signs"))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(15):
        optimizer.zero_grad()
        student(taught.rows).square().mean().backward()
        optimizer.step()
    assert any(bool((layer.weight < 0).any()) for layer in student.layers)
    plan = student.to_plan("kept")
    assert plan.keep == ("zeros", "signs")
    for layer in plan.layers:
        assert bool((layer.integers >= 0).all()) and not bool(layer.integers[blind.weight(layer.name) == 0].any())


def test_without_quantizers_the_student_is_the_full_precision_model() -> None:
    taught = lesson()
    student = Student(taught.start, is_quantized=False)
    with torch.no_grad():
        assert torch.allclose(student(taught.rows), taught.network(taught.rows), atol=1e-6)
    assert torch.equal(student.transfer_parameters(taught.network)(taught.rows), taught.network(taught.rows))


def test_images_and_shared_inputs_are_trained_too() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3)
            self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
            self.head = nn.Linear(64, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            return self.head(torch.relu(self.left(x) + self.right(x)).flatten(1))

    rows = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    network = capture(Fork(), rows[:2])
    points = build_factual_set(rows, None, as_predictor(network.graph, example=rows), target=1)
    widths = {layer.name: 4 for layer in network.layers}
    plan = quantize(network, points, widths, method="start", seed=0, activations=Activations(), progress=False)
    student = Student(Start(network, plan, {}), learned_clips=True)
    student(rows).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    with torch.no_grad():
        apart = (student(rows) - fake_quantize_network(network, student.to_plan("start"))(rows)).abs()
    assert float(apart.max()) < 1e-2


def test_a_plan_for_other_layers_is_refused() -> None:
    other = capture(nn.Sequential(nn.Linear(6, 2)), torch.randn(2, 6))
    with pytest.raises(ModelError, match="starting plan must be for the network's layers"):
        Start(other, lesson().plan, {})
