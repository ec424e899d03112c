"""Compute the full-precision model's recourse once and build calibration sets from it (eqs. 20 and 21)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.calibration.recombination import recombine_rows
from cfptq.errors import DataError, name_rows
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor
from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, GENERATED, HOLD_OUT_EVERY, CalibrationSet
from cfptq.quantize.row_sampling import sample_rows
from cfptq.recourse import Method, MinimalCost, ProjectedGradient, RecourseBatch, Target, find_single_feature_actions, resolve_target, solve
from cfptq.recourse.minimal_cost import EVALUATIONS_PER_ROW
from cfptq.recourse.single_feature_moves import LENGTH_SHARES

#: Recourse settings of appendix F. Three steps are made, and the final iterate is kept even if it misses the target. The steps are those of
#: the standard protocol, normalized and accumulated. Steps of eq. 6 to the letter change little (benchmarks/README.md, "Deviations").
PAPER_TEACHER = ProjectedGradient(steps=3, early_stop=False)

#: People whose minimal-cost recourse joins the boundary set. Beyond that, a seeded sample is solved.
MAX_MINIMAL_COST_PEOPLE = 256

#: Smallest sample of people whose minimal-cost recourse is worth solving. Where fewer are affordable, none is solved.
MIN_MINIMAL_COST_PEOPLE = 32

#: Weight of a minimal-cost or single-feature point, relative to other rows of the same margin. Such a point shows calibration how far one
#: feature may move, and so the ranges of hidden tensors. It lies on the boundary, where weights are largest, and would otherwise dominate.
MINIMAL_COST_WEIGHT = 0.25

#: People whose recourse by each feature alone joins the boundary set. Beyond that, a seeded sample is solved. These points show the
#: largest changes, which people may make at other prices or for a more confident decision.
MAX_SINGLE_FEATURE_PEOPLE = 64

#: Lengths and directions that single-feature recourse tries for each column of one person.
RUNS_PER_COLUMN = 2 * len(LENGTH_SHARES)

#: People with recourse that the boundary set should hold. Where fewer are rejected, recombined people fill it up.
WANTED_RECOURSE_PEOPLE = 1024

#: Recombined people generated for each one that is wanted. Most of them may be accepted, and are dropped.
CANDIDATES_PER_PERSON = 20

#: Model runs that projected-gradient recourse takes for one person, about.
GRADIENT_RUNS_PER_PERSON = 32

#: Refused people whom rows on both sides of the boundary start from, and the accepted ones for each of them.
BOTH_SIDES_PEOPLE, ACCEPTED_SHARE = 2048, 1 / 3

#: Recombined people generated for each one that rows on both sides start from. Half of them may be accepted.
BOTH_SIDES_CANDIDATES = 6

#: Rows that the boundary set with rows on both sides rounds on at most. They are drawn by weight. More do not help.
MAX_BOTH_SIDES_ROWS = 4096

#: Points on the way back from each recourse. Each keeps a share of every change of a single column between two bounds. It takes a
#: change of several columns, such as another level, back as a whole with a probability.
WAYS_BACK = ((0.3, 1.0, 0.15), (0.6, 1.1, 0.0), (0.0, 0.9, 0.5))

#: Added to the seed for the draw of people that rows on both sides start from, so that they are others than ``solve_recombined`` makes.
BOTH_SIDES_SEED = 12345


def build_factual_set(rows: Tensor, labels: Tensor | None, predictor: Predictor, *, target: Target) -> CalibrationSet:
    """Return X_cal alone, the calibration set of plain post-training quantization.

    Args:
        rows: X_cal, (N, ...) float32.
        labels: (N,) int64, or None to let the model's decisions stand in. ``labels_are_teacher`` then says so.
        predictor: the full-precision model.
        target: the wanted class: one for all, one a row (N,), or a rule ``(rows, logits) -> (N,)``.

    Raises:
        DataError: the labels do not fit the rows.
    """
    return _factual_set(rows, labels, predictor.logits(rows), target)


def build_augmented_set(
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
    """Return U_cal, the factual rows and x + delta_fp of every row that the model does not give its target (eqs. 20, 21).

    Args:
        rows: X_cal, (N, ...) float32.
        labels: (N,) int64, or None to let the model's decisions stand in. ``labels_are_teacher`` then says so.
        predictor: the full-precision model.
        space: what each person may change.
        target: the wanted class: one for all, one a row (N,), or a rule ``(rows, logits) -> (N,)``.
        settings: the recourse solver's settings. The default is appendix F's.
        seed: seed of random restarts.
        threads: PyTorch threads to use; None keeps the current number.
        progress: whether a progress bar may be shown.

    Returns:
        The calibration set, and the recourse of the rejected rows, in the order of the counterfactual rows. Where nobody is rejected,
        the set holds the factual rows alone and the batch is empty.

    Raises:
        DataError: the labels do not fit the rows, or the rows cannot be used.
        ActionSetError: a row breaks the action set's rules.
        ModelError: the model has no gradient and the settings need one.
    """
    logits = predictor.logits(rows)
    factual = _factual_set(rows, labels, logits, target)
    rejected = (logits.argmax(1) != factual.target).nonzero()[:, 0]
    if len(rejected) == 0:
        space.check(rows)
        return factual, _empty_recourse(rows, space, settings)
    recourse = solve(
        predictor, rows[rejected], space, target=factual.target[rejected], method=settings, seed=seed, threads=threads, progress=progress
    )
    return _append_points(factual, recourse, rejected), recourse


def build_boundary_set(
    rows: Tensor,
    labels: Tensor | None,
    predictor: Predictor,
    space: ActionSpace,
    *,
    target: Target,
    runs: int | None = None,
    minimal_cost: bool = True,
    both_sides: bool = False,
    seed: int = 0,
    threads: int | None = 1,
    progress: bool = True,
) -> tuple[CalibrationSet, RecourseBatch]:
    """Return X_cal and the points where recourse ends, every row weighted by how near its decision is to the boundary.

    The points are of four kinds: ``solve_rejected``, ``solve_minimal_cost``, ``solve_single_features`` and
    ``solve_recombined``. ``weigh_by_margin`` gives the weights. With ``both_sides``, the rows of ``generate_both_sides`` follow, and
    ``draw_by_weight`` draws the rows that count. The full-precision model says what margin each of them has, so they cost no labels.

    Args:
        rows: X_cal, (N, ...) float32.
        labels: (N,) int64, or None to let the model's decisions stand in. ``labels_are_teacher`` then says so.
        predictor: the full-precision model.
        space: what each person may change.
        target: the wanted class: one for all, one a row (N,), or a rule ``(rows, logits) -> (N,)``.
        runs: rows that the model may be run on to find recourse, about; None sets no limit. Where it is too small for all rejected
            rows, a seeded sample of them is solved, and below a certain size no minimal-cost recourse.
        minimal_cost: solve minimal-cost recourse too. Single-feature recourse is solved in any case.
        both_sides: add generated rows near the boundary on both of its sides. At most ``MAX_BOTH_SIDES_ROWS`` rows then have a weight
            above 0.
        seed: seed of samples and random restarts.
        threads: PyTorch threads to use; None keeps the current number.
        progress: whether a progress bar may be shown.

    Returns:
        The calibration set, and the projected-gradient recourse of the rejected rows that have some, in the order of the first
        counterfactual rows. Minimal-cost points follow, then single-feature points, then those of recombined people, then generated
        rows.

    Raises:
        DataError: the labels do not fit the rows, or the rows cannot be used.
        ActionSetError: a row breaks the action set's rules.
        ModelError: the model has no gradient.
    """
    logits = predictor.logits(rows)
    factual = _factual_set(rows, labels, logits, target)
    rejected = (logits.argmax(1) != factual.target).nonzero()[:, 0]
    most, most_minimal, most_both_sides = len(rejected), MAX_MINIMAL_COST_PEOPLE, BOTH_SIDES_PEOPLE
    if runs is not None:
        most, most_minimal = runs // GRADIENT_RUNS_PER_PERSON, min(MAX_MINIMAL_COST_PEOPLE, runs // EVALUATIONS_PER_ROW)
        most_both_sides = min(BOTH_SIDES_PEOPLE, most)
    space.check(rows)
    solver = PointSolver(predictor, space, factual, seed, threads, progress, runs)
    solved = solve_rejected(solver, rejected, most)
    minimal = solve_minimal_cost(solver, solved.source, most_minimal if minimal_cost else 0)
    single = solve_single_features(solver, minimal.source if minimal_cost else solved.source)
    wanted = min(WANTED_RECOURSE_PEOPLE, len(rows), WANTED_RECOURSE_PEOPLE if runs is None else most) - len(solved.source)
    recombined = solve_recombined(solver, wanted if len(solved.source) > 0 else 0)
    groups = (solved, minimal, single, recombined)
    points = factual
    for group in groups:
        points = _append_points(points, group.recourse, group.source)
    factual_margin = target_margin(logits, factual.target)
    points = replace(points, weights=weigh_by_margin(factual_margin, groups))
    if both_sides:
        points = draw_by_weight(generate_both_sides(solver, points, solved, factual_margin, most_both_sides), MAX_BOTH_SIDES_ROWS)
    note = describe_left_out(len(rejected), most)
    if minimal_cost:
        note += describe_minimal_cost_left_out(solver, len(solved.source), most_minimal, minimal)
    return points, replace(solved.recourse, note=note.strip() or solved.recourse.note)


def describe_left_out(rejected: int, most: int) -> str:
    """Return a sentence about rejected rows whose recourse is not searched, or "" where there are none.

    Args:
        rejected: number of rejected rows.
        most: number of those that the bound on the work allows.
    """
    if most >= rejected:
        return ""
    return f"To bound the work, recourse was searched for {most} of {rejected} rejected calibration rows. "


def describe_minimal_cost_left_out(solver: PointSolver, people: int, most: int, minimal: RecoursePoints) -> str:
    """Return sentences about people whose minimal-cost recourse is not searched, or not by combinations, or "" where there are none.

    Args:
        solver: the model, the rows and the settings.
        people: number of people with recourse.
        most: number of people that the bound on the work allows.
        minimal: what was found.
    """
    wanted, searched = min(people, MAX_MINIMAL_COST_PEOPLE), min(people, most if most >= MIN_MINIMAL_COST_PEOPLE else 0)
    if searched < wanted:
        return f"To bound the work, minimal-cost recourse was searched for {searched} of {wanted} people. "
    combined = MinimalCost(combination_runs=solver.combination_runs).limit_combinations(solver.space)
    missing = searched - len(minimal.source)
    if combined is not None and missing > 0 and combined < missing:
        return f"To bound the work, {missing} people for whom no descent found minimal-cost recourse have none. "
    return ""


@dataclass(frozen=True)
class RecoursePoints:
    """Recourse points of one kind.

    Attributes:
        recourse: (M) the recourse, each found.
        source: (M,) the factual row that each belongs to.
        weight: weight of each point, relative to factual rows of the same margin.
    """

    recourse: RecourseBatch
    source: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class PointSolver:
    """The model, the rows and the settings that all kinds of recourse points share.

    Attributes:
        predictor: the full-precision model.
        space: what each person may change.
        factual: the factual rows with their targets.
        seed: seed of samples and random restarts.
        threads: PyTorch threads to use; None keeps the current number.
        progress: whether a progress bar may be shown.
        runs: rows that the model may be run on for one kind of points, about; None sets no limit.
    """

    predictor: Predictor
    space: ActionSpace
    factual: CalibrationSet
    seed: int
    threads: int | None
    progress: bool
    runs: int | None = None

    @property
    def combination_runs(self) -> int | None:
        """Rows that the model may be run on to try columns and pairs of columns one by one, None for no limit.

        Action sets of tables have no limit, because their points cost no decoder.
        """
        return None if isinstance(self.space, ActionSet) else self.runs

    def solve(self, rows: Tensor, source: Tensor, method: Method, weight: float = 1.0) -> RecoursePoints:
        """Solve recourse for ``rows`` and keep those that have some. ``source`` names the factual row that each belongs to."""
        if len(rows) == 0:
            return RecoursePoints(_empty_recourse(self.factual.rows, self.space, method), source, weight)
        target = self.factual.target[source]
        batch = solve(
            self.predictor, rows, self.space, target=target, method=method, seed=self.seed, threads=self.threads, progress=self.progress
        )
        return RecoursePoints(batch[batch.found], source[batch.found], weight)

    def sample(self, count: int, most: int) -> Tensor:
        """Draw at most ``most`` positions below ``count`` evenly, ascending."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[:most].sort().values


def solve_rejected(solver: PointSolver, rejected: Tensor, most: int) -> RecoursePoints:
    """Solve projected-gradient recourse for at most ``most`` of the rejected rows, to the first step that reaches the target.

    Args:
        solver: the model, the rows and the settings.
        rejected: positions of the rejected rows.
        most: people to solve; a seeded sample where more are rejected.
    """
    people = rejected[solver.sample(len(rejected), most)]
    return solver.solve(solver.factual.rows[people], people, ProjectedGradient())


def solve_minimal_cost(solver: PointSolver, people: Tensor, most: int) -> RecoursePoints:
    """Solve minimal-cost recourse for a seeded sample of at most ``most`` people, or for none if the sample is too small.

    Args:
        solver: the model, the rows and the settings.
        people: positions of rejected rows that have recourse.
        most: people to solve.
    """
    chosen = people[solver.sample(len(people), most if most >= MIN_MINIMAL_COST_PEOPLE else 0)]
    return solver.solve(solver.factual.rows[chosen], chosen, MinimalCost(combination_runs=solver.combination_runs), MINIMAL_COST_WEIGHT)


def solve_single_features(solver: PointSolver, people: Tensor) -> RecoursePoints:
    """Solve recourse by each feature alone for a seeded sample of at most ``MAX_SINGLE_FEATURE_PEOPLE`` people.

    Args:
        solver: the model, the rows and the settings.
        people: positions of rejected rows that have recourse.
    """
    rows = solver.factual.rows
    most = MAX_SINGLE_FEATURE_PEOPLE
    if solver.combination_runs is not None:
        columns = sum(len(feature) for feature in solver.space.feature_columns)
        most = min(most, solver.combination_runs // (RUNS_PER_COLUMN * max(1, columns)))
    chosen = people[solver.sample(len(people), most)]
    if len(chosen) == 0:
        return RecoursePoints(_empty_recourse(rows, solver.space, MinimalCost()), chosen, MINIMAL_COST_WEIGHT)
    recourse, person = find_single_feature_actions(solver.predictor, rows[chosen], solver.space, solver.factual.target[chosen])
    return RecoursePoints(recourse, chosen[person], MINIMAL_COST_WEIGHT)


def solve_recombined(solver: PointSolver, wanted: int) -> RecoursePoints:
    """Solve projected-gradient recourse for ``wanted`` rejected people who are recombined of the rows' features.

    Fewer are solved where too few candidates are rejected. None is solved where actions do not live on the model's own columns.

    Args:
        solver: the model, the rows and the settings.
        wanted: people to solve; none where it is 0 or less.
    """
    rows = solver.factual.rows
    made, source = rows[:0], torch.zeros(0, dtype=torch.int64)
    if wanted > 0 and isinstance(solver.space, ActionSet):
        made, source = recombine_rows(rows, solver.space.column_groups, CANDIDATES_PER_PERSON * wanted, solver.seed, folds=HOLD_OUT_EVERY)
        rejected = (solver.predictor.logits(made).argmax(1) != solver.factual.target[source]).nonzero()[:wanted, 0]
        made, source = made[rejected], source[rejected]
    return solver.solve(made, source, ProjectedGradient())


def generate_both_sides(
    solver: PointSolver, points: CalibrationSet, solved: RecoursePoints, factual_margin: Tensor, people: int
) -> CalibrationSet:
    """Append generated rows near the boundary on both of its sides to a boundary set, weighted like its rows.

    They are recombined people, the recourse of those whom the model refuses, and points on the way back from it. Where actions do not
    live on the model's own columns, people cannot be recombined, and the way back of ``solved`` is all.

    Args:
        solver: the model, the rows and the settings.
        points: the boundary set, factual rows first.
        solved: projected-gradient recourse of factual rows.
        factual_margin: (N,) target margins of the factual rows.
        people: refused people to start from at most.
    """
    groups = [solved]
    rows: list[Tensor] = []
    sources: list[Tensor] = []
    if isinstance(solver.space, ActionSet):
        candidates, seed = BOTH_SIDES_CANDIDATES * people, solver.seed + BOTH_SIDES_SEED
        made, start = recombine_rows(solver.factual.rows, solver.space.column_groups, candidates, seed, folds=HOLD_OUT_EVERY)
        accepts = solver.predictor.logits(made).argmax(1) == solver.factual.target[start]
        accepted, refused = accepts.nonzero()[: round(ACCEPTED_SHARE * people), 0], (~accepts).nonzero()[:people, 0]
        found = solver.solve(made[refused], start[refused], ProjectedGradient())
        rows, sources = [made[accepted], made[refused], found.recourse.points], [start[accepted], start[refused], found.source]
        groups.append(found)
    generator = torch.Generator().manual_seed(solver.seed)
    for group in groups:
        back = [_step_back(solver.space, group.recourse, *way, generator) for way in WAYS_BACK]
        if group.recourse.last_refused is not None:
            back.append(group.recourse.last_refused)
        rows, sources = [*rows, *back], [*sources, *[group.source] * len(back)]
    return _append_generated(points, torch.cat(rows), torch.cat(sources), solver, factual_margin)


def _append_generated(points: CalibrationSet, rows: Tensor, source: Tensor, solver: PointSolver, factual_margin: Tensor) -> CalibrationSet:
    """Return ``points`` followed by generated rows of the people at ``source``, weighted by margin."""
    if len(rows) == 0:
        return points
    target = solver.factual.target[source]
    margin = target_margin(solver.predictor.logits(rows), target).abs()
    assert points.labels is not None
    return replace(
        points,
        rows=torch.cat((points.rows, rows)),
        origin=torch.cat((points.origin, torch.full((len(rows),), GENERATED, dtype=torch.uint8))),
        weights=torch.cat((points.weights, _decay(margin, _temperature(factual_margin)))),
        source=torch.cat((points.source, source)),
        target=torch.cat((points.target, target)),
        labels=torch.cat((points.labels, torch.full((len(rows),), -1))),
    )


def _step_back(space: ActionSpace, recourse: RecourseBatch, low: float, high: float, reverts: float, generator: torch.Generator) -> Tensor:
    """Return a point for each recourse that keeps a share of its action, (M, ...).

    Args:
        space: what each person may change.
        recourse: the recourse, M rows.
        low: least share that single columns keep.
        high: largest share.
        reverts: probability that a change of several columns is taken back.
        generator: source of random numbers.
    """
    count = len(recourse)
    delta = recourse.delta * (low + (high - low) * torch.rand(count, *[1] * (recourse.delta.dim() - 1), generator=generator))
    for columns in space.feature_columns:
        if len(columns) > 1:
            kept = torch.rand(count, generator=generator) >= reverts
            delta[:, list(columns)] = recourse.delta[:, list(columns)] * kept[:, None]
    return space.apply(recourse.factual, space.project(recourse.factual, delta))


def draw_by_weight(points: CalibrationSet, most: int) -> CalibrationSet:
    """Let at most ``most`` rows count, drawn systematically by weight.

    Weighted means stay unbiased. Rows that are not drawn get weight 0, and generated ones among them are dropped.

    Args:
        points: the set.
        most: rows that may have a weight above 0.
    """
    chosen, counts = sample_rows(points.weights, most)
    weights = torch.zeros_like(points.weights)
    weights[chosen] = counts
    kept = (weights > 0) | (points.origin != GENERATED)
    assert points.labels is not None
    return replace(
        points,
        rows=points.rows[kept],
        origin=points.origin[kept],
        weights=weights[kept],
        source=points.source[kept],
        target=points.target[kept],
        labels=points.labels[kept],
    )


def weigh_by_margin(factual_margin: Tensor, groups: Sequence[RecoursePoints]) -> Tensor:
    """Return a weight for every row that falls with its margin, exp(−|m| / T) times the weight of its kind.

    T is half the median |m| of the factual rows. A row far from the boundary, on either side, counts little, because rounding cannot
    flip its decision.

    Args:
        factual_margin: (N,) target margins of the factual rows.
        groups: the recourse points that follow them.

    Returns:
        (N + M,) float32, positive.
    """
    margin = torch.cat([factual_margin, *(group.recourse.margin for group in groups)]).abs()
    share = torch.cat([torch.ones(len(factual_margin)), *(torch.full((len(group.recourse),), group.weight) for group in groups)])
    return _decay(margin, _temperature(factual_margin), share)


def _temperature(factual_margin: Tensor) -> float:
    """Return half the median |m| of the factual rows, positive."""
    return max(float(factual_margin.abs().median()) / 2, torch.finfo(torch.float32).tiny)


def _decay(margin: Tensor, temperature: float, share: Tensor | float = 1.0) -> Tensor:
    """Return share · exp(−|m| / T), positive."""
    return (share * torch.exp(-margin / temperature)).clamp_min(torch.finfo(torch.float32).tiny)


def _factual_set(rows: Tensor, labels: Tensor | None, logits: Tensor, target: Target) -> CalibrationSet:
    """Return the rows with their targets and labels, checked."""
    if labels is not None:
        if tuple(labels.shape) != (len(rows),) or labels.dtype != torch.int64:
            raise DataError(
                f"labels must be ({len(rows)},) int64, one class a row, got {tuple(labels.shape)} {labels.dtype}. Convert them to class "
                "indices."
            )
        outside = ((labels < 0) | (labels >= logits.shape[1])).nonzero()[:, 0].tolist()
        if outside:
            raise DataError(
                f"labels must be classes from 0 to {logits.shape[1] - 1}, and those of rows {name_rows(outside)} are not. Correct them, or "
                "pass no labels."
            )
    return CalibrationSet(
        rows=rows.clone(),
        origin=torch.full((len(rows),), FACTUAL, dtype=torch.uint8),
        weights=torch.ones(len(rows)),
        source=torch.arange(len(rows)),
        target=resolve_target(target, rows, logits),
        labels=logits.argmax(1) if labels is None else labels.clone(),
        labels_are_teacher=labels is None,
    )


def _append_points(points: CalibrationSet, recourse: RecourseBatch, people: Tensor) -> CalibrationSet:
    """Return ``points`` followed by the end points of the recourse of ``people`` (positions among the factual rows)."""
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


def _empty_recourse(rows: Tensor, space: ActionSpace, settings: Method) -> RecourseBatch:
    """Return the recourse of nobody, with the columns of ``rows``."""
    none = rows[:0]
    empty = torch.zeros(0)
    name = "projected-gradient" if isinstance(settings, ProjectedGradient) else "minimal-cost"
    confidence = 0.5 if isinstance(settings, ProjectedGradient) else settings.confidence
    return RecourseBatch(none, none, space.zero(rows)[:0], empty, empty.bool(), empty, empty.long(), name, confidence)
