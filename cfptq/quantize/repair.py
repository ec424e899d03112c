"""Repair of a plan, which changes the last layer until recourse that the quantized model breaks is valid again.

The search counts both sides, recourse points that are refused and factual rows whose decision differs from the full-precision model's. It
never takes more of the latter than before, so that recourse is not bought by accepting people whom the model rejects. A repair found on
calibration rows need not help others. It is therefore first tried without every fourth person and judged on those people. The repair is
applied only where it does them no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cfptq.errors import ModelError
from cfptq.network import DecisionRule, Network
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet, hold_out_people
from cfptq.quantize.fake_quantized import fake_quantize_network, run_prefix
from cfptq.quantize.formats import align_limits, fake_quantize
from cfptq.quantize.plan import LayerPlan, QuantizationPlan, widen_steps_for_bias
from cfptq.quantize.structure import SignBounds

#: Target margin that a decision must have, in logits. The fake-quantized module and a file's integer kernels may differ by so much.
MIN_MARGIN_LOGITS = 1e-3

#: Moves of one integer or one bias. A search ends after so many.
MAX_MOVES = 128

#: Share of the loss that a move must save. A search ends when none does.
MIN_GAIN_SHARE = 1e-3

#: Weights of a flipped factual decision relative to a broken recourse point. Each is tried, because one alone may not find a repair.
FLIP_WEIGHTS = (1.0, 4.0, 16.0)

#: Rows whose bias shifts are tried, those nearest to the boundary first.
MAX_SHIFT_ROWS = 64

#: Drift of the favourable rate among held-out people, as a share. A repair with more is not applied, unless the drift was larger before.
MAX_DRIFT = 0.005

#: Deviation of a class logit from a linear function of the last layer's output, as a share of its slope. A model with more is refused.
MAX_NONLINEARITY = 0.01

#: Size of class logits up to which linearity is checked, in logits. Larger ones may be saturated by rounding.
MAX_CHECKED_LOGITS = 10.0


@dataclass(frozen=True)
class DecisionCounts:
    """Counts of a quantized model's decisions at recourse points and at factual rows.

    Attributes:
        points: recourse points at which the full-precision model grants the target.
        broken: those among them that are refused.
        rows: factual rows.
        flipped: those among them whose decision differs from the full-precision model's.
        gained: factual rows granted the target, minus those that the full-precision model grants it.
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

    @property
    def wrong(self) -> int:
        """Broken recourse points and flipped factual decisions."""
        return self.broken + self.flipped


@dataclass(frozen=True)
class Repair:
    """Report of a repair.

    Attributes:
        applied: the plan is the repaired one.
        moves: number of integers and biases moved.
        before: counts on the calibration rows before the repair, which used these rows.
        after: the same after it. They are ``before`` where the repair was not applied.
        held_out_before: counts on held-out people, by a model calibrated without them.
        held_out_after: the same after a repair without them, whether or not the repair was applied.
    """

    applied: bool
    moves: int
    before: DecisionCounts
    after: DecisionCounts
    held_out_before: DecisionCounts
    held_out_after: DecisionCounts

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Repair:
        """Return the report that ``to_dict`` wrote."""
        values: dict[str, Any] = {name: DecisionCounts(**value) if isinstance(value, dict) else value for name, value in content.items()}
        return Repair(**values)

    def __str__(self) -> str:
        done = f"{self.moves} moves" if self.applied else "not applied, because it did not help held-out people"
        counts = "; ".join(
            f"{where}: {before.broken} → {after.broken} of {before.points} recourse points broken, {before.flipped} → {after.flipped} of "
            f"{before.rows} factual decisions flipped, drift {before.drift:+.4f} → {after.drift:+.4f}"
            for where, before, after in (
                ("calibration", self.before, self.after),
                ("held-out people", self.held_out_before, self.held_out_after),
            )
        )
        return f"repair ({done}). {counts}"


def repair_last_layer(
    network: Network,
    plan: QuantizationPlan,
    trial: QuantizationPlan,
    people: CalibrationSet,
    *,
    decision: DecisionRule,
) -> tuple[QuantizationPlan, Repair]:
    """Repair the last layer of a plan, unless that harms held-out people.

    Args:
        network: the captured full-precision network.
        plan: the plan to repair.
        trial: the same method's plan at the same widths, calibrated without the rows that ``hold_out_people`` holds out.
        people: factual rows, and the points where their recourse ends.
        decision: head of the network's raw output and decision threshold.

    Returns:
        The repaired plan, or ``plan`` itself, and a report.

    Raises:
        ModelError: the class logits are not linear in the last quantized layer's output, so that it cannot be repaired.
        DataError: there are too few people to hold anybody out.
    """

    def count(candidate: QuantizationPlan, rows: CalibrationSet) -> DecisionCounts:
        return count_decisions(network, candidate, rows, decision=decision)

    kept, held_out = hold_out_people(people)
    held_out_before = count(trial, held_out)
    held_out_after = count(find_repair(network, trial, kept, decision=decision)[0], held_out)
    found, moves = find_repair(network, plan, people, decision=decision)
    max_drift = max(abs(held_out_before.drift), MAX_DRIFT)
    is_harmless = held_out_after.wrong <= held_out_before.wrong and abs(held_out_after.drift) <= max_drift
    final = found if is_harmless else plan
    report = Repair(is_harmless, moves if is_harmless else 0, count(plan, people), count(final, people), held_out_before, held_out_after)
    return final, report


def count_decisions(network: Network, plan: QuantizationPlan, people: CalibrationSet, *, decision: DecisionRule) -> DecisionCounts:
    """Count the decisions of a quantized model that differ from the full-precision model's.

    Args:
        network: the captured full-precision network.
        plan: the plan of the quantized model.
        people: factual rows and recourse points. Points that the network itself refuses are left out.
        decision: head of the network's raw output and decision threshold.
    """
    with torch.no_grad():
        wanted = decision.decide(network(people.rows))
        given = decision.decide(fake_quantize_network(network, plan)(people.rows))
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
    network: Network, plan: QuantizationPlan, people: CalibrationSet, *, decision: DecisionRule
) -> tuple[QuantizationPlan, int]:
    """Search for changes of the last layer that break fewer recourse points.

    Each move changes one integer by 1 (within its width's range and the structure that the plan keeps), or shifts one bias so that one more
    row gets its wanted decision. It is the move that lowers the weighted sum of max(0, MIN_MARGIN_LOGITS − margin) most. The search ends
    when no recourse point is broken or no move lowers the sum. Of all states on the way, it returns the one with the fewest wrong decisions
    among those that flip no more factual decisions than ``plan``.

    Args:
        network: the captured full-precision network.
        plan: the plan to repair.
        people: factual rows and recourse points.
        decision: head of the network's raw output and decision threshold.

    Returns:
        The changed plan, and the number of moves.

    Raises:
        ModelError: the class logits are not linear in the last quantized layer's output.
    """
    last = plan.layers[-1]
    with torch.no_grad():
        wanted = decision.decide(network(people.rows))
    point = people.origin == COUNTERFACTUAL
    used = ~point | (wanted == people.target)
    point = point[used]
    problem = _build_problem(network, plan, people.rows[used], wanted[used], decision)
    start = _State(last.integers.to(torch.float32), last.bias, 0)
    bounds = _find_bounds(network, plan)
    best, rank = start, _rank_state(problem.gaps(start), point)
    flips_allowed = rank[1]
    for flip_weight in FLIP_WEIGHTS:
        for state in _iterate_descent(problem, start, torch.where(point, 1.0, flip_weight), point, bounds):
            reached = _rank_state(problem.gaps(state), point)
            if reached[1] <= flips_allowed and reached < rank:
                best, rank = state, reached
    moved = replace(last, integers=best.integers.to(torch.int8), bias=best.bias)
    layer = widen_steps_for_bias(moved, plan.input_format(last))
    return replace(plan, layers=(*plan.layers[:-1], layer)), best.moves


@dataclass(frozen=True)
class _State:
    """The last layer after some moves.

    Attributes:
        integers: (out, k) as float32.
        bias: (out,), or None.
        moves: number of moves so far.
    """

    integers: Tensor
    bias: Tensor | None
    moves: int

    def apply(self, move: _Move) -> _State:
        """Return the state after one more move."""
        integers, bias = self.integers.clone(), self.bias
        if move.column is not None:
            integers[move.channel, move.column] += move.size
        elif bias is not None:
            bias = bias.clone()
            bias[move.channel] += move.size
        return _State(integers, bias, self.moves + 1)


def _rank_state(gaps: Tensor, point: Tensor) -> tuple[int, int, float]:
    """Return the number of wrong decisions, of flipped factual ones among them, and the sum of their missing margins. Less is better."""
    margin = gaps.amin(dim=1)
    wrong = margin <= 0
    return int(wrong.sum()), int((wrong & ~point).sum()), float((MIN_MARGIN_LOGITS - margin).clamp_min(0).sum())


def _find_bounds(network: Network, plan: QuantizationPlan) -> tuple[Tensor, Tensor]:
    """Return the least and the largest value of each integer of the last layer."""
    last = plan.layers[-1]
    limit = align_limits(last.bits, last.integers) * torch.ones(last.integers.shape)
    signs = SignBounds.of(network.weight(last.name), plan.keep, last.kept_inputs)
    return (-limit, limit) if signs is None else (-limit * signs.negative, limit * signs.positive)


def _iterate_descent(problem: _Problem, state: _State, weights: Tensor, point: Tensor, bounds: tuple[Tensor, Tensor]) -> Iterator[_State]:
    """Yield the state after each best move, until no recourse point is broken or no move helps."""
    for _ in range(MAX_MOVES):
        gaps = problem.gaps(state)
        margin = gaps.amin(dim=1)
        if not bool(((margin <= 0) & point).any()):
            return
        moves = [problem.find_best_step(gaps, weights, state.integers, bounds)]
        if state.bias is not None:
            moves += problem.find_best_shifts(gaps, weights)
        best = min(moves, key=lambda move: move.loss)
        if not best.loss < (1 - MIN_GAIN_SHARE) * float((weights * (MIN_MARGIN_LOGITS - margin).clamp_min(0)).sum()):
            return
        state = state.apply(best)
        yield state


@dataclass(frozen=True)
class _Move:
    """Change of one integer or one bias.

    Attributes:
        loss: the loss after it.
        channel: output channel.
        column: column of the integer, or None for the bias.
        size: the change.
    """

    loss: float
    channel: int
    column: int | None
    size: float


@dataclass(frozen=True)
class _Problem:
    """Class logits as a function of the last layer, with everything before it fixed.

    Attributes:
        layer: the layer as planned.
        inputs: its input, on its grid, (N, k).
        rest: the part of each gap that does not depend on the layer, (N, C). A gap is the wanted class's logit minus another class's.
        slopes: gradient of the gaps in each output channel, (out, N, C).
        other: 0 at the other classes and infinity at the wanted one, so that it is never the nearest competitor, (N, C).
    """

    layer: LayerPlan
    inputs: Tensor
    rest: Tensor
    slopes: Tensor
    other: Tensor

    def gaps(self, state: _State) -> Tensor:
        """Return the wanted class's logit minus each other one, (N, C). The margin of a row is the least."""
        z = self.inputs @ (state.integers * self.layer.scale[:, None]).mT
        if state.bias is not None:
            z = z + state.bias
        return torch.einsum("nc,cnk->nk", z, self.slopes) + self.rest + self.other

    def find_best_step(self, gaps: Tensor, weights: Tensor, integers: Tensor, bounds: tuple[Tensor, Tensor]) -> _Move:
        """Find the change of one integer by 1 that leads to the least loss.

        Rows whose margin no single change can bring below MIN_MARGIN_LOGITS are skipped.
        """
        reach = self.inputs.abs().amax(dim=1) * (self.slopes.abs() * self.layer.scale[:, None, None]).amax(dim=(0, 2))
        near = gaps.amin(dim=1) <= MIN_MARGIN_LOGITS + reach
        inputs, gaps, weights, slopes = self.inputs[near], gaps[near], weights[near], self.slopes[:, near]
        moves = []
        for channel, step in ((channel, step) for channel in range(len(integers)) for step in (-1.0, 1.0)):
            change = inputs * (step * float(self.layer.scale[channel]))
            margin = torch.full_like(change, torch.inf)
            for other in range(gaps.shape[1]):
                margin = torch.minimum(margin, torch.addcmul(gaps[:, other, None], change, slopes[channel, :, other, None]))
            loss = weights @ (MIN_MARGIN_LOGITS - margin).clamp_min_(0)
            changed = integers[channel] + step
            is_allowed = (changed >= bounds[0][channel]) & (changed <= bounds[1][channel])
            loss = torch.where(is_allowed, loss, torch.inf)
            column = int(loss.argmin())
            moves.append(_Move(float(loss[column]), channel, column, step))
        return min(moves, key=lambda move: move.loss)

    def find_best_shifts(self, gaps: Tensor, weights: Tensor) -> list[_Move]:
        """Find the shift of each bias that gives one more row its wanted decision and leads to the least loss."""
        margin, rival = gaps.min(dim=1)
        failing = (margin < MIN_MARGIN_LOGITS).nonzero()[:, 0]
        failing = failing[margin[failing].argsort(descending=True, stable=True)][:MAX_SHIFT_ROWS]
        moves = []
        for channel, slopes in enumerate(self.slopes):
            slope = slopes[failing, rival[failing]]
            shifts = ((MIN_MARGIN_LOGITS - margin[failing]) / slope)[slope != 0]
            if len(shifts):
                reached = (gaps[:, :, None] + slopes[:, :, None] * shifts).amin(dim=1)
                loss = weights @ (MIN_MARGIN_LOGITS - reached).clamp_min_(0)
                place = int(loss.argmin())
                moves.append(_Move(float(loss[place]), channel, None, float(shifts[place])))
        return moves


def _build_problem(network: Network, plan: QuantizationPlan, rows: Tensor, wanted: Tensor, decision: DecisionRule) -> _Problem:
    """Find the last layer's inputs, and the slopes of class logits in its output by shifting one output at a time by 1."""
    last = plan.layers[-1]
    formats = {form.tensor: form for form in plan.activations}
    before = {layer.input: formats[layer.input] for layer in plan.layers[:-1]}
    inputs = fake_quantize(run_prefix(network, plan.layers[:-1], before, last.input, rows), formats[last.input])

    def logits(bias: Tensor | None) -> Tensor:
        changed = replace(plan, layers=(*plan.layers[:-1], replace(last, bias=bias)))
        with torch.no_grad():
            return decision.class_logits(fake_quantize_network(network, changed)(rows))

    def subtract_first(values: Tensor) -> Tensor:
        return values - values[:, :1]

    given = subtract_first(logits(last.bias))
    bias = torch.zeros_like(last.scale) if last.bias is None else last.bias
    unit = torch.eye(len(bias))
    moved = torch.stack([subtract_first(logits(bias + unit[channel])) - given for channel in range(len(bias))])
    moderate = given.abs().amax(dim=1) <= MAX_CHECKED_LOGITS
    moderate = moderate if bool(moderate.any()) else torch.ones_like(moderate)
    slopes = moved[:, moderate].mean(dim=1)
    deviation = (moved[:, moderate] - slopes[:, None]).abs().amax() if inputs.dim() == 2 else torch.tensor(torch.inf)
    if float(deviation) > MAX_NONLINEARITY * max(float(slopes.abs().amax()), MIN_MARGIN_LOGITS):
        raise ModelError(
            f"Layer {last.name!r} cannot be repaired, because the class logits are not linear in its output. Leave repair out, or let a "
            "linear layer be the model's last."
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
