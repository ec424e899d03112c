"""Repair: small changes to the last layer's integers and bias, until recourse that the quantized model breaks holds again.

The search counts both sides: recourse points that fail, and factual rows whose decision differs from the full-precision model's, each
by how far its margin is from holding. More of the latter than before are never taken, so that recourse is not bought by accepting
people whom the model rejects. What is found on calibration rows need not hold for others. Hence the whole procedure is first tried
without every fourth person, judged on those people, and the repair is kept only where it does them no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cfptq.errors import ModelError
from cfptq.network import Head, Network, class_logits
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet, hold_out_people
from cfptq.quantize.fake_quantized import fake_quantize_network, run_prefix
from cfptq.quantize.formats import fake_quantize, integer_limit
from cfptq.quantize.plan import LayerPlan, QuantizationPlan

#: A decision holds by at least this target margin: what the twin and a file's integer kernels may differ by.
HAIR = 1e-3

#: Steps of one integer or one bias, at most.
MOVES = 128

#: Share of the loss that a move must save, or moves end.
LEAST_GAIN = 1e-3

#: How much more a flipped factual decision may cost than a broken recourse point; each is tried, for one alone may find no way.
CAUTION = (1.0, 4.0, 16.0)

#: Rows whose bias shifts are tried, the nearest to holding first.
SHIFTS = 64

#: Largest drift of the favourable rate among people set aside that a repair may leave, unless it was larger before.
MAX_DRIFT = 0.005

#: How far a class logit may be from linear in the last layer's output, as a share of its slope, and up to which size that is looked at.
LINEAR, MODERATE = 0.01, 10.0


@dataclass(frozen=True)
class DecisionCounts:
    """What a quantized model does at recourse points and at factual rows.

    Attributes:
        points: recourse points, where the full-precision model grants the target.
        broken: of those, refused.
        rows: factual rows.
        flipped: of those, decided otherwise than by the full-precision model.
        gained: people granted the target among the factual rows, less those whom the full-precision model grants it.
    """

    points: int
    broken: int
    rows: int
    flipped: int
    gained: int

    @property
    def validity_drop(self) -> float:
        """Share of recourse points that are refused."""
        return self.broken / self.points if self.points else float("nan")

    @property
    def drift(self) -> float:
        """Change of the favourable rate."""
        return self.gained / self.rows


@dataclass(frozen=True)
class Repair:
    """What the repair did.

    Attributes:
        applied: whether the plan is the repaired one.
        moves: integers and biases moved.
        before, after: calibration rows, which the repair has seen; the same where it was not applied.
        held_out_before, held_out_after: people set aside, by a model calibrated and repaired without them; judged whether or not the
            repair was applied.
    """

    applied: bool
    moves: int
    before: DecisionCounts
    after: DecisionCounts
    held_out_before: DecisionCounts
    held_out_after: DecisionCounts

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Repair:
        """What :meth:`to_dict` gave."""
        told: dict[str, Any] = {name: DecisionCounts(**value) if isinstance(value, dict) else value for name, value in content.items()}
        return Repair(**told)

    def __str__(self) -> str:
        done = f"{self.moves} moves" if self.applied else "left out, for it did not help people set aside"
        told = "; ".join(
            f"{where}: {before.broken} → {after.broken} of {before.points} recourse points broken, {before.flipped} → {after.flipped} of "
            f"{before.rows} factual decisions flipped, drift {before.drift:+.4f} → {after.drift:+.4f}"
            for where, before, after in (
                ("calibration", self.before, self.after),
                ("people set aside", self.held_out_before, self.held_out_after),
            )
        )
        return f"repair ({done}). {told}"


def repair_last_layer(
    network: Network,
    plan: QuantizationPlan,
    trial: QuantizationPlan,
    people: CalibrationSet,
    *,
    head: Head,
    threshold: float | None,
) -> tuple[QuantizationPlan, Repair]:
    """``plan`` with its last layer repaired, where that does no harm to people set aside, and what happened.

    Args:
        network: the full-precision network.
        plan: the plan to repair.
        trial: the same method's plan at the same widths, calibrated without the rows that :func:`hold_out_people` holds out.
        people: factual rows and points where their recourse ends; what the repair looks at.
        head, threshold: what the network puts out and where it decides.

    Raises:
        ModelError: the decision is not linear in the last quantized layer's output, so that there is nothing to repair there.
        DataError: too few rows to set anybody aside.
    """

    def judged(candidate: QuantizationPlan, rows: CalibrationSet) -> DecisionCounts:
        return count_decisions(network, candidate, rows, head=head, threshold=threshold)

    kept, aside = hold_out_people(people)
    held_before = judged(trial, aside)
    held_after = judged(find_repair(network, trial, kept, head=head, threshold=threshold)[0], aside)
    found, moves = find_repair(network, plan, people, head=head, threshold=threshold)
    wrong = (held_before.broken + held_before.flipped, held_after.broken + held_after.flipped)
    harmless = wrong[1] <= wrong[0] and abs(held_after.drift) <= max(abs(held_before.drift), MAX_DRIFT)
    final = found if harmless else plan
    report = Repair(harmless, moves if harmless else 0, judged(plan, people), judged(final, people), held_before, held_after)
    return final, report


def count_decisions(
    network: Network, plan: QuantizationPlan, people: CalibrationSet, *, head: Head, threshold: float | None
) -> DecisionCounts:
    """Count where ``plan`` decides otherwise than ``network``. Recourse points that the network itself refuses are left out."""
    with torch.no_grad():
        wanted = class_logits(network(people.rows), head, threshold).argmax(dim=1)
        given = class_logits(fake_quantize_network(network, plan)(people.rows), head, threshold).argmax(dim=1)
    factual = people.origin != COUNTERFACTUAL
    points = ~factual & (wanted == people.target)
    granted, before = given == people.target, wanted == people.target
    return DecisionCounts(
        points=int(points.sum()),
        broken=int((points & ~granted).sum()),
        rows=int(factual.sum()),
        flipped=int((factual & (given != wanted)).sum()),
        gained=int((factual & granted).sum()) - int((factual & before).sum()),
    )


def find_repair(
    network: Network, plan: QuantizationPlan, people: CalibrationSet, *, head: Head, threshold: float | None
) -> tuple[QuantizationPlan, int]:
    """``plan`` with the last layer changed, and the number of moves.

    Each move steps one integer by 1 (within its width's range) or shifts one bias to where one more row holds, whichever lowers
    the weighted sum of max(0, HAIR − margin) most. Moves end when no recourse point is broken or no move lowers it. Of all states
    passed through, the one with the fewest wrong decisions is taken among those that flip no more factual decisions than ``plan``.

    Raises:
        ModelError: as :func:`repair_last_layer`.
    """
    last = plan.layers[-1]
    with torch.no_grad():
        wanted = class_logits(network(people.rows), head, threshold).argmax(dim=1)
    point = people.origin == COUNTERFACTUAL
    used = ~point | (wanted == people.target)
    point = point[used]
    problem = _problem(network, plan, people.rows[used], wanted[used], head, threshold)
    start = _State(last.integers.to(torch.float32), last.bias, 0)
    limit = integer_limit(last.bits)
    best, rank = start, _rank(problem.gaps(start), point)
    flips_allowed = rank[1]
    for caution in CAUTION:
        for state in _descent(problem, start, torch.where(point, 1.0, caution), point, limit):
            reached = _rank(problem.gaps(state), point)
            if reached[1] <= flips_allowed and reached < rank:
                best, rank = state, reached
    layer = replace(last, integers=best.integers.to(torch.int8), bias=best.bias)
    return replace(plan, layers=(*plan.layers[:-1], layer)), best.moves


@dataclass(frozen=True)
class _State:
    """The last layer after some moves: integers (out, k) as float32, and the bias."""

    integers: Tensor
    bias: Tensor | None
    moves: int

    def moved(self, move: _Move) -> _State:
        integers, bias = self.integers.clone(), self.bias
        if move.column is not None:
            integers[move.channel, move.column] += move.size
        elif bias is not None:
            bias = bias.clone()
            bias[move.channel] += move.size
        return _State(integers, bias, self.moves + 1)


def _rank(gaps: Tensor, point: Tensor) -> tuple[int, int, float]:
    """Wrong decisions in all, flipped factual ones among them, and how wrong they are: less is better."""
    margin = gaps.amin(dim=1)
    wrong = margin <= 0
    return int(wrong.sum()), int((wrong & ~point).sum()), float((HAIR - margin).clamp_min(0).sum())


def _descent(problem: _Problem, state: _State, weights: Tensor, point: Tensor, limit: int) -> Iterator[_State]:
    """The states that the best moves lead through, until no recourse point is broken or no move helps."""
    for _ in range(MOVES):
        gaps = problem.gaps(state)
        margin = gaps.amin(dim=1)
        if not bool(((margin <= 0) & point).any()):
            return
        moves = [problem.best_step(gaps, weights, state.integers, limit)]
        if state.bias is not None:
            moves += problem.best_shifts(gaps, weights)
        best = min(moves, key=lambda move: move.loss)
        if not best.loss < (1 - LEAST_GAIN) * float((weights * (HAIR - margin).clamp_min(0)).sum()):
            return
        state = state.moved(best)
        yield state


@dataclass(frozen=True)
class _Move:
    """One step of an integer (``column`` given) or one shift of a bias, and the loss that it leads to."""

    loss: float
    channel: int
    column: int | None
    size: float


@dataclass(frozen=True)
class _Problem:
    """The last layer alone: everything before it stands still.

    Attributes:
        layer: the layer as planned.
        inputs: (N, k) what feeds it, on its grid.
        rest: (N, C) what class logits hold beside the layer's own part, against the wanted class's.
        slopes: (out, N, C) change of (wanted class logit − each class logit) as output ``channel`` grows by 1.
        other: (N, C) 0 at the other classes, infinity at the wanted one, so that it never is the nearest competitor.
    """

    layer: LayerPlan
    inputs: Tensor
    rest: Tensor
    slopes: Tensor
    other: Tensor

    def gaps(self, state: _State) -> Tensor:
        """(N, C): wanted class logit less each other; the margin is the least of a row."""
        z = self.inputs @ (state.integers * self.layer.scale[:, None]).mT
        if state.bias is not None:
            z = z + state.bias
        return torch.einsum("nc,cnk->nk", z, self.slopes) + self.rest + self.other

    def best_step(self, gaps: Tensor, weights: Tensor, integers: Tensor, limit: int) -> _Move:
        """The step of one integer that leads to the least loss. Rows that no single step can bring below the hair are skipped."""
        reach = self.inputs.abs().amax(dim=1) * (self.slopes.abs() * self.layer.scale[:, None, None]).amax(dim=(0, 2))
        near = gaps.amin(dim=1) <= HAIR + reach
        inputs, gaps, weights, slopes = self.inputs[near], gaps[near], weights[near], self.slopes[:, near]
        moves = []
        for channel, step in ((channel, step) for channel in range(len(integers)) for step in (-1.0, 1.0)):
            change = inputs * (step * float(self.layer.scale[channel]))
            margin = torch.full_like(change, torch.inf)
            for other in range(gaps.shape[1]):
                margin = torch.minimum(margin, torch.addcmul(gaps[:, other, None], change, slopes[channel, :, other, None]))
            loss = weights @ (HAIR - margin).clamp_min_(0)
            loss = torch.where((integers[channel] + step).abs() > limit, torch.inf, loss)
            column = int(loss.argmin())
            moves.append(_Move(float(loss[column]), channel, column, step))
        return min(moves, key=lambda move: move.loss)

    def best_shifts(self, gaps: Tensor, weights: Tensor) -> list[_Move]:
        """For each bias, the shift that makes one more row hold and leads to the least loss; none where no shift can."""
        margin, rival = gaps.min(dim=1)
        failing = (margin < HAIR).nonzero()[:, 0]
        failing = failing[margin[failing].argsort(descending=True, stable=True)][:SHIFTS]
        moves = []
        for channel, slopes in enumerate(self.slopes):
            slope = slopes[failing, rival[failing]]
            shifts = ((HAIR - margin[failing]) / slope)[slope != 0]
            if len(shifts):
                reached = (gaps[:, :, None] + slopes[:, :, None] * shifts).amin(dim=1)
                loss = weights @ (HAIR - reached).clamp_min_(0)
                place = int(loss.argmin())
                moves.append(_Move(float(loss[place]), channel, None, float(shifts[place])))
        return moves


def _problem(network: Network, plan: QuantizationPlan, rows: Tensor, wanted: Tensor, head: Head, threshold: float | None) -> _Problem:
    """The last layer's inputs, and how class logits follow its output: found by shifting one output at a time by 1."""
    last = plan.layers[-1]
    formats = {form.tensor: form for form in plan.activations}
    before = {layer.input: formats[layer.input] for layer in plan.layers[:-1]}
    inputs = fake_quantize(run_prefix(network, plan.layers[:-1], before, last.input, rows), formats[last.input])

    def logits(bias: Tensor | None) -> Tensor:
        changed = replace(plan, layers=(*plan.layers[:-1], replace(last, bias=bias)))
        with torch.no_grad():
            return class_logits(fake_quantize_network(network, changed)(rows), head, threshold)

    def against_first(values: Tensor) -> Tensor:
        return values - values[:, :1]

    given = against_first(logits(last.bias))
    bias = torch.zeros_like(last.scale) if last.bias is None else last.bias
    unit = torch.eye(len(bias))
    moved = torch.stack([against_first(logits(bias + unit[channel])) - given for channel in range(len(bias))])
    moderate = given.abs().amax(dim=1) <= MODERATE
    moderate = moderate if bool(moderate.any()) else torch.ones_like(moderate)
    slopes = moved[:, moderate].mean(dim=1)
    apart = (moved[:, moderate] - slopes[:, None]).abs().amax() if inputs.dim() == 2 else torch.tensor(torch.inf)
    if float(apart) > LINEAR * max(float(slopes.abs().amax()), HAIR):
        raise ModelError(
            f"nothing can be repaired in layer {last.name!r}: the class logits are not linear in its output; leave repair out, or let a "
            "linear layer be the model's last"
        )
    z = inputs @ last.weight().mT + bias
    rest = given - z @ slopes
    own = torch.arange(len(rows))
    other = torch.zeros_like(given)
    other[own, wanted] = torch.inf
    return _Problem(
        layer=last,
        inputs=inputs,
        rest=rest[own, wanted][:, None] - rest,
        slopes=slopes[:, wanted, None] - slopes[:, None, :],
        other=other,
    )
