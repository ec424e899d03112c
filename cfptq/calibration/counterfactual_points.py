"""Teacher recourse, computed once, and the calibration set it makes (eqs. 20 and 21)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.calibration.recombination import recombined
from cfptq.errors import DataError, name_rows
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor
from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, HOLD_OUT_EVERY, CalibrationSet
from cfptq.recourse import Method, MinimalCost, ProjectedGradient, RecourseBatch, Target, single_feature, solve, target_of_rows
from cfptq.recourse.minimal_cost import EVALUATIONS_PER_ROW

#: Appendix F to the letter: K = 3 steps and the final iterate, whether it reaches the target or not.
PAPER_TEACHER = ProjectedGradient(steps=3, early_stop=False)

#: People whose minimal-cost recourse joins the points near the boundary, and what one such point weighs beside any other row. It
#: moves few features, and those further than gradient steps do: what calibration has not seen, the ranges of hidden tensors cut off.
#: It lies on the boundary itself, where weights are largest, so it counts less.
CHEAPEST, CHEAPEST_WEIGHT = 256, 0.25

#: People whose recourse by each feature alone joins them. What few take at the price asked, many may at another price, or when they ask
#: for a more confident decision; it may lie farther out than anything else here.
SINGLE = 64

#: People with recourse that calibration wants, or as many as it has rows. What few rejected rows leave to be wished for is looked for
#: among recombined people, so many for each that is wanted, since most may be accepted.
ENOUGH, CANDIDATES = 1024, 20

#: About how often the model is run for one person's projected-gradient recourse; and how many people's minimal-cost recourse says anything.
GRADIENT_RUNS, FEWEST_CHEAPEST = 32, 32


def augment(
    rows: Tensor,
    labels: Tensor | None,
    predictor: Predictor,
    space: ActionSpace,
    *,
    target: Target,
    settings: Method = PAPER_TEACHER,
    seed: int = 0,
    threads: int | None = 1,
    progress: bool = True,
) -> tuple[CalibrationSet, RecourseBatch]:
    """U_cal: the factual rows, and x + delta_fp of every row that the teacher does not give its target (eqs. 20, 21).

    Args:
        rows: X_cal, (N, ...) float32.
        labels: (N,) int64, or ``None``: the teacher's decisions then stand in, and ``labels_are_teacher`` says so.
        predictor: the teacher.
        space: what each person may change.
        target: the wanted class: one for all, one a row (N,), or a rule ``(rows, logits) -> (N,)``.
        settings: how the teacher's recourse is computed.
        seed: of random restarts. threads: PyTorch threads to use. progress: see :func:`cfptq.recourse.solve`.

    Returns:
        The calibration set, and the teacher's recourse of the rejected rows, in the order of the counterfactual rows. Nobody
        rejected gives a set of factual rows alone and an empty batch.

    Raises:
        DataError, ActionSetError, ModelError: as :func:`cfptq.recourse.solve`; also labels that do not fit the rows.
    """
    logits = predictor.logits(rows)
    factual = _factual(rows, labels, logits, target)
    rejected = (logits.argmax(1) != factual.target).nonzero()[:, 0]
    if len(rejected) == 0:
        space.check(rows)
        return factual, _nobody(rows, space, settings)
    teacher = solve(
        predictor, rows[rejected], space, target=factual.target[rejected], method=settings, seed=seed, threads=threads, progress=progress
    )
    return _joined(factual, teacher, rejected), teacher


def near_boundary(
    rows: Tensor,
    labels: Tensor | None,
    predictor: Predictor,
    space: ActionSpace,
    *,
    target: Target,
    runs: int | None = None,
    seed: int = 0,
    threads: int | None = 1,
    progress: bool = True,
) -> tuple[CalibrationSet, RecourseBatch]:
    """X_cal, the points where the rejected rows' recourse ends, and a weight on every row that falls with its margin.

    Recourse is projected-gradient, to the first step that reaches the target; a seeded sample of those who have it adds its
    minimal-cost recourse, and a part of that sample what each feature alone could do. Where few are rejected, people recombined of the
    rows' features add theirs (:func:`recombined`), if actions live on the model's own columns. A row of target margin m weighs
    exp(-|m| / T), with T half the median |m| of the factual rows: what is far from the boundary, on either side, counts little, for
    rounding cannot flip it.

    Args, Raises: as :func:`augment`; also ``runs``, about how many rows the model may be run on to find recourse: where it is too
    wide for more, a seeded sample of the rejected rows is solved, and no minimal-cost recourse in the end. None solves all.

    Returns:
        The calibration set, and the projected-gradient recourse of the rejected rows that have some, in the order of the first
        counterfactual rows; minimal-cost points follow, single-feature ones, then those of recombined people.
    """
    logits = predictor.logits(rows)
    factual = _factual(rows, labels, logits, target)
    rejected = (logits.argmax(1) != factual.target).nonzero()[:, 0]
    most, cheapest_most = len(rejected), CHEAPEST
    if runs is not None:
        most, cheapest_most = runs // GRADIENT_RUNS, min(CHEAPEST, runs // EVALUATIONS_PER_ROW)
    people = rejected[_sample(len(rejected), most, seed)]

    def solved(asking: Tensor, source: Tensor, method: Method) -> tuple[RecourseBatch, Tensor]:
        """The recourse of those ``asking`` who have some, and the factual row that each of them goes back to."""
        if len(asking) == 0:
            return _nobody(rows, space, method), source
        wanted = factual.target[source]
        batch = solve(predictor, asking, space, target=wanted, method=method, seed=seed, threads=threads, progress=progress)
        return batch[batch.found], source[batch.found]

    space.check(rows)
    recourse, people = solved(rows[people], people, ProjectedGradient())
    drawn = people[_sample(len(people), cheapest_most if cheapest_most >= FEWEST_CHEAPEST else 0, seed)]
    cheapest, drawn = solved(rows[drawn], drawn, MinimalCost())
    few = drawn[_sample(len(drawn), SINGLE, seed)]
    alone, which = (
        single_feature(predictor, rows[few], space, factual.target[few]) if len(few) else (_nobody(rows, space, MinimalCost()), few)
    )
    missing = min(ENOUGH, len(rows), ENOUGH if runs is None else most) - len(people)
    made, like = rows[:0], people[:0]
    if len(people) > 0 and missing > 0 and isinstance(space, ActionSet):
        made, like = recombined(rows, space.feature_columns, CANDIDATES * missing, seed, folds=HOLD_OUT_EVERY)
        refused = (predictor.logits(made).argmax(1) != factual.target[like]).nonzero()[:missing, 0]
        made, like = made[refused], like[refused]
    others, like = solved(made, like, ProjectedGradient())
    points, margins, shares = factual, [target_margin(logits, factual.target)], [torch.ones(len(rows))]
    for batch, source, share in (
        (recourse, people, 1.0),
        (cheapest, drawn, CHEAPEST_WEIGHT),
        (alone, few[which], CHEAPEST_WEIGHT),
        (others, like, 1.0),
    ):
        points = _joined(points, batch, source)
        margins.append(batch.margin)
        shares.append(torch.full((len(batch),), share))
    margin = torch.cat(margins).abs()
    tiny = torch.finfo(torch.float32).tiny
    temperature = max(float(margin[: len(rows)].median()) / 2, tiny)
    return replace(points, weights=(torch.cat(shares) * torch.exp(-margin / temperature)).clamp_min(tiny)), recourse


def factual_only(rows: Tensor, labels: Tensor | None, predictor: Predictor, *, target: Target) -> CalibrationSet:
    """X_cal alone, as plain post-training quantization has it; arguments as in :func:`augment`."""
    return _factual(rows, labels, predictor.logits(rows), target)


def _factual(rows: Tensor, labels: Tensor | None, logits: Tensor, target: Target) -> CalibrationSet:
    if labels is not None:
        if tuple(labels.shape) != (len(rows),) or labels.dtype != torch.int64:
            raise DataError(f"labels are {tuple(labels.shape)} {labels.dtype} for {len(rows)} rows; give one int64 class a row")
        outside = ((labels < 0) | (labels >= logits.shape[1])).nonzero()[:, 0].tolist()
        if outside:
            raise DataError(f"labels of rows {name_rows(outside)} are none of the model's {logits.shape[1]} classes, counted from 0")
    return CalibrationSet(
        rows=rows.clone(),
        origin=torch.full((len(rows),), FACTUAL, dtype=torch.uint8),
        weights=torch.ones(len(rows)),
        source=torch.arange(len(rows)),
        target=target_of_rows(target, rows, logits),
        labels=logits.argmax(1) if labels is None else labels.clone(),
        labels_are_teacher=labels is None,
    )


def _joined(points: CalibrationSet, recourse: RecourseBatch, people: Tensor) -> CalibrationSet:
    """``points`` and, behind them, where the recourse of ``people`` (positions among the factual rows) ends."""
    assert points.labels is not None
    return replace(
        points,
        rows=torch.cat((points.rows, recourse.points)),
        origin=torch.cat((points.origin, torch.full((len(people),), COUNTERFACTUAL, dtype=torch.uint8))),
        weights=torch.cat((points.weights, torch.ones(len(people)))),
        source=torch.cat((points.source, people)),
        target=torch.cat((points.target, recourse.target)),
        labels=torch.cat((points.labels, torch.full((len(people),), -1))),
    )


def _sample(count: int, most: int, seed: int) -> Tensor:
    """At most ``most`` positions below ``count``, drawn evenly, ascending."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def _nobody(rows: Tensor, space: ActionSpace, settings: Method) -> RecourseBatch:
    none = rows[:0]
    empty = torch.zeros(0)
    name = "projected-gradient" if isinstance(settings, ProjectedGradient) else "minimal-cost"
    confidence = 0.5 if isinstance(settings, ProjectedGradient) else settings.confidence
    return RecourseBatch(none, none, space.zero(rows)[:0], empty, empty.bool(), empty, empty.long(), name, confidence)
