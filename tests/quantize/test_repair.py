"""Repair against enumeration of single moves, and what it may never do: leave the range, flip more people, touch other layers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from cfptq.calibration import CalibrationSet, hold_out_people
from cfptq.errors import DataError, ModelError
from cfptq.network import DecisionRule, Head, Network, capture, class_logits
from cfptq.quantize import Activations, QuantizationPlan, fake_quantize_network, quantize, round_nearest
from cfptq.quantize.repair import MIN_MARGIN_LOGITS, Repair, count_decisions, find_repair, repair_last_layer

ROWS = 240


def net(seed: int, tail: nn.Module | None = None, classes: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, classes)]
        return nn.Sequential(*layers, *([tail] if tail is not None else [])).eval()


def near_the_boundary(network: Network, head: Head = Head.LOGITS, seed: int = 0) -> CalibrationSet:
    """Factual rows, and of the rejected ones the first point on the way to an accepted one that the network accepts."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, 5, generator=generator)

    def decided(x: torch.Tensor) -> torch.Tensor:
        return class_logits(network(x), head).argmax(1)

    accepted = rows[decided(rows) == 1]
    rejected = (decided(rows) != 1).nonzero()[:, 0]
    start, end = rows[rejected], accepted[torch.arange(len(rejected)) % len(accepted)]
    points = end.clone()
    for share in torch.linspace(1, 0, 60):
        between = start + share * (end - start)
        points = torch.where((decided(between) == 1)[:, None], between, points)
    return CalibrationSet(
        rows=torch.cat((rows, points)),
        origin=torch.cat((torch.zeros(ROWS), torch.ones(len(points)))).to(torch.uint8),
        weights=torch.ones(ROWS + len(points)),
        source=torch.cat((torch.arange(ROWS), rejected)),
        target=torch.ones(ROWS + len(points), dtype=torch.int64),
    )


def rounded(network: Network, people: CalibrationSet, bits: int = 3, input_bits: int = 32) -> QuantizationPlan:
    widths = {layer.name: bits for layer in network.layers}
    activations = Activations(input_bits=input_bits)
    return quantize(network, people, widths, method="test", seed=0, rounding=round_nearest, activations=activations, progress=False)


def wrong(network: Network, plan: QuantizationPlan, people: CalibrationSet, head: Head = Head.LOGITS) -> tuple[int, int]:
    """Broken recourse points and flipped factual decisions, counted one by one."""
    q = fake_quantize_network(network, plan)
    broken = flipped = 0
    for row, origin in zip(people.rows, people.origin.tolist(), strict=True):
        before = int(class_logits(network(row[None]), head).argmax())
        after = int(class_logits(q(row[None]), head).argmax())
        if origin == 1 and before == 1:
            broken += after != 1
        elif origin == 0:
            flipped += after != before
    return broken, flipped


@pytest.mark.parametrize("seed", range(4))
def test_fewer_points_break_and_no_more_people_flip(seed: int) -> None:
    network = capture(net(seed), torch.zeros(2, 5))
    people = near_the_boundary(network)
    plan = rounded(network, people)
    better, moves = find_repair(network, plan, people, decision=DecisionRule(Head.LOGITS))
    before, after = wrong(network, plan, people), wrong(network, better, people)
    assert before[0] > 0
    assert sum(after) < sum(before) and after[1] <= before[1] and moves > 0
    counted = count_decisions(network, better, people, decision=DecisionRule(Head.LOGITS))
    assert (counted.broken, counted.flipped) == after


def test_only_the_last_layers_integers_and_bias_move_and_integers_stay_in_range() -> None:
    network = capture(net(1), torch.zeros(2, 5))
    people = near_the_boundary(network)
    plan = rounded(network, people, bits=2)
    better, _ = find_repair(network, plan, people, decision=DecisionRule(Head.LOGITS))
    assert better.digest != plan.digest
    assert better.layers[:-1] == plan.layers[:-1] and better.activations == plan.activations
    last, kept = better.layers[-1], plan.layers[-1]
    assert torch.equal(last.scale, kept.scale) and last.bits == kept.bits
    assert int(last.integers.abs().max()) <= 1


def loss_of(network: Network, plan: QuantizationPlan, people: CalibrationSet) -> float:
    with torch.no_grad():
        wanted = network(people.rows).argmax(1)
        logits = fake_quantize_network(network, plan)(people.rows)
    own = logits.gather(1, wanted[:, None])[:, 0]
    rival = logits.scatter(1, wanted[:, None], -math.inf).amax(1)
    return float((MIN_MARGIN_LOGITS - (own - rival)).clamp_min(0).sum())


@pytest.mark.parametrize("classes", [2, 3])
def test_a_move_is_the_best_of_all_single_steps(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = capture(net(0, classes=classes), torch.zeros(2, 5))
    last = network.layers[-1].name
    network = network.with_parameters({last: (network.weight(last), None)})  # so that integers alone can move
    people = near_the_boundary(network)
    plan = rounded(network, people, bits=3)
    monkeypatch.setattr("cfptq.quantize.repair.MAX_MOVES", 1)
    monkeypatch.setattr("cfptq.quantize.repair.FLIP_WEIGHTS", (1.0,))
    better, moves = find_repair(network, plan, people, decision=DecisionRule(Head.LOGITS))
    assert moves == 1
    losses = []
    for place in torch.cartesian_prod(torch.arange(classes), torch.arange(12)).tolist():
        for step in (-1, 1):
            integers = plan.layers[-1].integers.clone()
            integers[tuple(place)] += step
            if int(integers.abs().max()) <= 3:
                moved = replace(plan, layers=(*plan.layers[:-1], replace(plan.layers[-1], integers=integers)))
                losses.append(loss_of(network, moved, people))
    assert loss_of(network, better, people) == pytest.approx(min(losses), rel=1e-4)


def test_a_wrong_bias_alone_is_put_right_by_a_shift() -> None:
    network = capture(net(0), torch.zeros(2, 5))
    people = near_the_boundary(network)
    plan = rounded(network, people, bits=8)
    last = plan.layers[-1]
    assert last.bias is not None
    spoilt = replace(plan, layers=(*plan.layers[:-1], replace(last, bias=last.bias + torch.tensor([0.4, -0.4]))))
    better, moves = find_repair(network, spoilt, people, decision=DecisionRule(Head.LOGITS))
    assert wrong(network, spoilt, people)[0] > 20
    assert wrong(network, better, people)[0] <= wrong(network, plan, people)[0] + 1
    assert 0 < moves <= 10


@pytest.mark.parametrize(
    ("head", "tail", "classes"),
    [(Head.PROBABILITIES, nn.Softmax(dim=1), 2), (Head.LOGIT, None, 1), (Head.PROBABILITY, nn.Sigmoid(), 1)],
)
@pytest.mark.parametrize("input_bits", [32, 8])
def test_other_heads_are_repaired_too(head: Head, tail: nn.Module | None, classes: int, input_bits: int) -> None:
    network = capture(net(1, tail, classes), torch.zeros(2, 5))
    people = near_the_boundary(network, head)
    plan = rounded(network, people, input_bits=input_bits)
    better, _ = find_repair(network, plan, people, decision=DecisionRule(head))
    before, after = wrong(network, plan, people, head), wrong(network, better, people, head)
    assert before[0] > 0 and sum(after) < sum(before) and after[1] <= before[1]


def test_a_decision_that_is_not_linear_in_the_last_layer_is_refused() -> None:
    network = capture(net(0, nn.Softplus()), torch.zeros(2, 5))
    people = near_the_boundary(network)
    with pytest.raises(ModelError, match="not linear"):
        find_repair(network, rounded(network, people), people, decision=DecisionRule(Head.LOGITS))


def test_people_set_aside_are_judged_by_a_model_that_never_saw_them() -> None:
    network = capture(net(1), torch.zeros(2, 5))
    people = near_the_boundary(network)
    plan = rounded(network, people)
    kept, aside = hold_out_people(people)
    trial = rounded(network, kept)
    final, report = repair_last_layer(network, plan, trial, people, decision=DecisionRule(Head.LOGITS))
    assert (report.held_out_before.broken, report.held_out_before.flipped) == wrong(network, trial, aside)
    repaired_trial, _ = find_repair(network, trial, kept, decision=DecisionRule(Head.LOGITS))
    assert (report.held_out_after.broken, report.held_out_after.flipped) == wrong(network, repaired_trial, aside)
    assert (report.after.broken, report.after.flipped) == wrong(network, final, people)
    harm = sum(wrong(network, repaired_trial, aside)) > sum(wrong(network, trial, aside))
    assert not (report.applied and harm)
    assert Repair.from_dict(report.to_dict()) == report
    assert "held-out people" in str(report)


def test_a_repair_that_harms_held_out_people_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    network = capture(net(1), torch.zeros(2, 5))
    people = near_the_boundary(network)
    plan = rounded(network, people)
    last = plan.layers[-1]
    assert last.bias is not None
    ruined = replace(plan, layers=(*plan.layers[:-1], replace(last, bias=last.bias + torch.tensor([0.0, -50.0]))))
    monkeypatch.setattr("cfptq.quantize.repair.find_repair", lambda *_, **__: (ruined, 9))
    final, report = repair_last_layer(network, plan, plan, people, decision=DecisionRule(Head.LOGITS))
    assert final is plan and not report.applied and report.moves == 0
    assert report.after == report.before
    assert report.held_out_after.broken > report.held_out_before.broken


def test_a_person_and_her_recourse_are_set_aside_together() -> None:
    people = near_the_boundary(capture(net(0), torch.zeros(2, 5)))
    kept, aside = hold_out_people(people)
    assert len(kept) + len(aside) == len(people)
    assert int((aside.origin == 0).sum()) == ROWS // 4
    for part in (kept, aside):
        factual = part.rows[part.origin == 0]
        original = people.rows[people.origin == 0]
        for row, source in zip(part.rows[part.origin == 1], part.source[part.origin == 1].tolist(), strict=True):
            place = int((original == factual[source]).all(1).nonzero())
            own = people.rows[(people.origin == 1) & (people.source == place)]
            assert bool((own == row).all(1).any())
    with pytest.raises(DataError, match="too few"):
        hold_out_people(replace(people, **{name: getattr(people, name)[:3] for name in ("rows", "origin", "weights", "source", "target")}))
