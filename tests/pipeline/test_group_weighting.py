"""Weights that help the worst group: on people of whom one group sits near the boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from cfptq.calibration import CalibrationSet
from cfptq.errors import DataError
from cfptq.network import DecisionRule, Head, capture
from cfptq.pipeline.group_weighting import ROUNDS, SMALLEST_GROUP, GroupTrial, WorstGroup, build_group_problem, choose_trial, label_rows
from cfptq.quantize import Activations, QuantizationPlan, fake_quantize_network, quantize, round_compensated

PEOPLE = 400


def near_and_far(seed: int = 0, small: int = 0) -> tuple[nn.Module, CalibrationSet, list[str]]:
    """A random net, and recourse points that lie close to its boundary for group "near" and further off for group "far".

    The groups also live in different columns, so that rounding can favour one or the other.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    rows = torch.randn(20 * PEOPLE, 8, generator=generator)
    half = len(rows) // 2
    rows[:half, 4:] *= 0.1
    rows[half:, :4] *= 0.1
    with torch.no_grad():
        logits = model(rows)
        margin = logits[:, 1] - logits[:, 0]
        model[-1].bias[1] -= margin.median()
        margin -= margin.median()
    unit = margin.abs().median()
    near = ((margin > 0) & (margin < 0.15 * unit)).nonzero()[:, 0]
    far = ((margin > 0.15 * unit) & (margin < unit)).nonzero()[:, 0]
    near, far = near[near < half][: PEOPLE // 2], far[far >= half][: PEOPLE // 2]
    points = rows[torch.cat((near, far))]
    labels = ["near"] * len(near) + ["far"] * len(far)
    for place in range(small):
        labels[place] = "few"
    factual = points + torch.randn(points.shape, generator=generator) * 0.3
    count = len(points)
    people = CalibrationSet(
        rows=torch.cat((factual, points)),
        origin=torch.cat((torch.zeros(count), torch.ones(count))).to(torch.uint8),
        weights=torch.ones(2 * count),
        source=torch.arange(count).repeat(2),
        target=torch.ones(2 * count, dtype=torch.int64),
    )
    return model, people, labels


def run(model: nn.Module, people: CalibrationSet, labels: list[str]) -> tuple[CalibrationSet, QuantizationPlan, WorstGroup]:
    network = capture(model, people.rows[:2])

    def round_on(rows: CalibrationSet) -> QuantizationPlan:
        widths = {layer.name: 3 for layer in network.layers}
        settings = Activations(input_bits=32)
        return quantize(
            network, rows, widths, method="t", seed=0, rounding=round_compensated, activations=settings, sequential=True, progress=False
        )

    problem = build_group_problem(network, people, labels, decision=DecisionRule(Head.LOGITS))
    trials: list[GroupTrial] = []
    while (factors := problem.next_factors(trials)) is not None:
        weighted = problem.weigh(people, factors)
        trials.append(problem.judge(network, weighted, round_on(weighted), factors))
    kept = choose_trial(trials)
    return trials[kept].calibration, trials[kept].plan, problem.report(trials, kept)


def drops(model: nn.Module, plan: QuantizationPlan, people: CalibrationSet, labels: list[str]) -> dict[str, float]:
    """Validity Drop of each group, counted person by person."""
    q = fake_quantize_network(capture(model, people.rows[:2]), plan)
    with torch.no_grad():
        refused = (q(people.rows[people.origin == 1]).argmax(1) != 1).tolist()
    return {name: sum(r for r, own in zip(refused, labels, strict=True) if own == name) / labels.count(name) for name in set(labels)}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_worst_group_never_fares_worse_and_the_report_is_what_happened(seed: int) -> None:
    model, people, labels = near_and_far(seed)
    weighted, plan, report = run(model, people, labels)
    counted = drops(model, plan, people, labels)
    assert {group.name: group.after for group in report.groups} == pytest.approx(counted)
    assert report.worst_after == pytest.approx(max(counted.values()))
    assert report.worst_after <= report.worst_before
    assert {group.name: group.points for group in report.groups} == {name: labels.count(name) for name in set(labels)}
    for group in report.groups:
        factors = weighted.weights[torch.tensor([label == group.name for label in labels * 2])]
        assert factors.tolist() == pytest.approx([group.weight] * len(factors), rel=1e-5)


def test_the_group_near_the_boundary_gains_weight_and_validity() -> None:
    gains = []
    for seed in range(3):
        model, people, labels = near_and_far(seed)
        _, _, report = run(model, people, labels)
        near, far = (next(group for group in report.groups if group.name == name) for name in ("near", "far"))
        assert near.before > far.before
        assert report.kept == 0 or near.weight > far.weight
        gains.append(report.worst_before - report.worst_after)
    assert min(gains) >= 0 and max(gains) > 0


def test_a_small_group_is_reported_but_does_not_steer() -> None:
    model, people, labels = near_and_far(small=SMALLEST_GROUP - 1)
    _, _, report = run(model, people, labels)
    few = next(group for group in report.groups if group.name == "few")
    assert not few.steers and few.weight == 1.0 and few.points == SMALLEST_GROUP - 1
    assert "too few to change the weights" in str(report)
    low, high = few.interval
    assert low <= few.after <= high and high - low > 0.2
    assert report.rounds <= ROUNDS + 1
    assert WorstGroup.from_dict(report.to_dict()) == report


def test_groups_without_recourse_are_refused() -> None:
    model, people, labels = near_and_far()
    nobody = replace(people, target=torch.zeros(len(people), dtype=torch.int64))
    with pytest.raises(DataError, match="groups must include one"):
        run(model, nobody, labels)


class Space:
    """An action space without named features."""


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ("sex", "names features"),
        (lambda rows: ["a"], "1 labels for 3 rows"),
        (lambda rows: None, "got a NoneType"),
    ],
    ids=["no names", "wrong length", "nothing"],
)
def test_labels_that_cannot_be_had_are_refused(groups: str | Callable[[torch.Tensor], list[str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        label_rows(groups, torch.zeros(3, 2), Space())  # type: ignore[arg-type]


def test_no_group_with_enough_people_has_no_worst() -> None:
    report = WorstGroup((), 1, 0)
    assert math.isnan(report.worst_before) and math.isnan(report.worst_after)
