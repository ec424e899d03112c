"""Exact recourse against enumeration of all actions and SciPy's own solvers."""

from __future__ import annotations

from math import inf, isinf

import numpy as np
import pytest
import torch
from box_space import BoxSpace
from scipy.optimize import linprog, minimize
from small_world import filled, least_cost, network, people
from torch import Tensor, nn

from cfptq.actions import ActionSet, Continuous
from cfptq.actions.cost import Norm
from cfptq.errors import DataError, ModelError
from cfptq.network import Predictor, as_predictor, target_margin
from cfptq.recourse import Descent, Exact, MinimalCost, RecourseBatch, Status, solve
from cfptq.recourse.exact import read_network
from cfptq.recourse.exact.action_model import build_action_models
from cfptq.recourse.exact.bounds import build_region, compute_bounds
from cfptq.recourse.exact.closed_form import find_cheapest_l2

PROVEN = (Status.INFEASIBLE, Status.IMMUTABLE)


def exact(model: nn.Module | Predictor, rows: Tensor, action_set: ActionSet, target: int = 1, **settings: object) -> RecourseBatch:
    """Solve by one program, without regions and enumeration unless ``settings`` say so."""
    settings = {"max_enumerated": 0, "use_regions": False, **settings}
    return solve(model, rows, action_set, target=target, method=Exact(**settings), progress=False)  # type: ignore[arg-type]


def agrees_with_the_list(model: nn.Module, rows: Tensor, action_set: ActionSet, batch: RecourseBatch) -> None:
    for row, status in enumerate(batch.statuses):
        if status is Status.FAVOURABLE:
            continue
        least = least_cost(model, rows[row], action_set, int(batch.target[row]))
        if isinf(least):
            assert status in PROVEN and not batch.found[row]
        else:
            assert status is Status.OPTIMAL and batch.found[row]
            assert float(batch.cost[row]) == pytest.approx(least, rel=3e-4)


@pytest.mark.parametrize("max_changes", [None, 1, 2])
def test_a_relu_network_is_solved_to_the_cheapest_of_all_actions(max_changes: int | None) -> None:
    action_set, rows = people(8, seed=3, max_changes=max_changes)
    model = network(10, seed=1, hidden=8)
    agrees_with_the_list(model, rows, action_set, exact(model, rows, action_set))


@pytest.mark.parametrize("max_changes", [None, 1, 2])
def test_cutting_the_moves_into_regions_finds_the_cheapest_of_all_actions(max_changes: int | None) -> None:
    action_set, rows = people(25, seed=3, max_changes=max_changes)
    model = network(10, seed=1)
    # A poor start, so that regions have something to find.
    poor = MinimalCost(portfolio=(Descent(exponent=1.0, step_fraction=1.0, is_weighted=False),), steps=2)
    agrees_with_the_list(model, rows, action_set, exact(model, rows, action_set, use_regions=True, heuristic=poor))


@pytest.mark.parametrize("max_changes", [None, 2])
@pytest.mark.parametrize("norm", ["l1", "l2", ("mix", 0.4, 0.9)])
def test_few_actions_are_listed_cheapest_first(max_changes: int | None, norm: Norm) -> None:
    action_set, rows = people(20, seed=3, max_changes=max_changes, norm=norm)
    model = network(10, seed=1)
    agrees_with_the_list(model, rows, action_set, exact(model, rows, action_set, max_enumerated=100_000))


@pytest.mark.parametrize("norm", ["l2", ("mix", 0.4, 0.9)])
def test_other_norms_are_solved_to_the_cheapest_of_all_actions(norm: Norm) -> None:
    action_set, rows = people(5, seed=4, max_changes=3, norm=norm)
    model = network(10, seed=2, hidden=8)
    agrees_with_the_list(model, rows, action_set, exact(model, rows, action_set))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_linear_model_with_levels_whole_numbers_and_sparsity_is_solved_to_the_cheapest_of_all_actions(norm: Norm) -> None:
    action_set, rows = people(15, seed=5, max_changes=2, norm=norm)
    model = filled(nn.Sequential(nn.Linear(10, 2)), torch.Generator().manual_seed(8))
    agrees_with_the_list(model, rows, action_set, exact(model, rows, action_set))


def test_the_target_may_be_any_of_several_classes() -> None:
    action_set, rows = people(6, seed=6, max_changes=2)
    model = network(10, seed=3, hidden=8, outputs=4)
    agrees_with_the_list(model, rows, action_set, exact(model, rows, action_set, target=2))


class Residual(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.BatchNorm1d(10)
        self.enter, self.inner, self.leave = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.between = nn.BatchNorm1d(8)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
            for norm in (self.norm, self.between):
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.3)
                norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.enter(self.norm(x)))
        hidden = hidden + nn.functional.leaky_relu(self.between(self.inner(hidden)), 0.1)
        return torch.sigmoid(self.leave(hidden)).squeeze(1)


class Logits(nn.Module):
    """The same decisions with two logits, which is what the list of all actions is made with."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        probability = self.inner(x).clamp(1e-7, 1 - 1e-7)
        return torch.stack((torch.zeros_like(probability), torch.logit(probability)), 1)


def test_residual_sums_batch_norms_leaky_relus_and_a_sigmoid_are_read() -> None:
    action_set, rows = people(6, seed=7, max_changes=2)
    model = Residual(seed=11)
    batch = exact(model, rows, action_set)
    agrees_with_the_list(Logits(model), rows, action_set, batch)


def continuous(width: int, norm: Norm, max_changes: int | None = None, bound: float = 1.5) -> ActionSet:
    features = [Continuous(f"x{column}", column=column, bounds=(-bound, bound), effort=0.5 + 0.25 * column) for column in range(width)]
    return ActionSet.from_columns(torch.zeros(4, width), features, norm=norm, weights="uniform", max_changes=max_changes)


def linear(seed: int, width: int) -> tuple[nn.Sequential, np.ndarray, float]:
    model = filled(nn.Sequential(nn.Linear(width, 2)), torch.Generator().manual_seed(seed))
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    return model, (layer.weight[1] - layer.weight[0]).detach().double().numpy(), float((layer.bias[1] - layer.bias[0]).detach())


def test_l1_on_a_linear_model_is_the_linear_program_of_scipy() -> None:
    width = 6
    action_set = continuous(width, "l1")
    price = action_set.column_weights.double().numpy()
    model, slope, offset = linear(4, width)
    rows = torch.randn(20, width, generator=torch.Generator().manual_seed(1)).clamp(-1.4, 1.4)
    batch = exact(model, rows, action_set)
    for row, status, cost in zip(rows.double().numpy(), batch.statuses, batch.cost.tolist(), strict=True):
        need = 1e-5 - float(slope @ row) - offset
        bounds = [(0, 1.5 - value) for value in row] + [(0, 1.5 + value) for value in row]
        truth = linprog(np.tile(price, 2), A_ub=-np.concatenate((slope, -slope))[None], b_ub=[-need], bounds=bounds)
        if status is Status.FAVOURABLE:
            continue
        assert (status in PROVEN) == (truth.status == 2)
        assert truth.status == 2 or cost == pytest.approx(truth.fun, rel=3e-4)


def test_l2_on_a_linear_model_is_the_quadratic_program_of_scipy() -> None:
    width = 5
    action_set = continuous(width, "l2", bound=0.8)
    price = action_set.column_weights.double().numpy()
    model, slope, offset = linear(6, width)
    rows = torch.randn(25, width, generator=torch.Generator().manual_seed(2)).clamp(-0.7, 0.7)
    batch = exact(model, rows, action_set)
    assert sum(status is Status.OPTIMAL for status in batch.statuses) >= 5
    for row, status, cost in zip(rows.double().numpy(), batch.statuses, batch.cost.tolist(), strict=True):
        if status is not Status.OPTIMAL:
            continue
        need = 1e-5 - float(slope @ row) - offset
        truth = minimize(
            lambda delta: ((price * delta) ** 2).sum(),
            np.zeros(width),
            bounds=[(-0.8 - value, 0.8 - value) for value in row],
            constraints={"type": "ineq", "fun": lambda delta, need=need: slope @ delta - need},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert cost == pytest.approx(float(np.sqrt(truth.fun)), rel=1e-3)


def test_the_closed_form_tries_every_support() -> None:
    slope, weight = np.array([3.0, 2.0, 1.0]), np.array([1.0, 1.0, 1.0])
    # One column suffices: the steepest. With little room in it, another one must do, or two together.
    assert find_cheapest_l2(slope, weight, np.full(3, 9.0), 3.0, 1) == pytest.approx(np.array([1.0, 0, 0]))
    assert find_cheapest_l2(slope, weight, np.array([0.5, 9.0, 9.0]), 3.0, 1) == pytest.approx(np.array([0, 1.5, 0]))
    assert find_cheapest_l2(slope, weight, np.array([0.5, 9.0, 9.0]), 3.0, 2) == pytest.approx(np.array([0.5, 0.75, 0]))
    assert find_cheapest_l2(slope, weight, np.full(3, 9.0), 14.0, 3) == pytest.approx(np.array([3.0, 2.0, 1.0]))
    assert find_cheapest_l2(slope, weight, np.full(3, 0.1), 3.0, 3) is None


@pytest.mark.parametrize("use_regions", [False, True])
def test_continuous_actions_on_a_network_are_as_cheap_as_the_finest_grid_shows(use_regions: bool) -> None:
    action_set = continuous(2, "l1")
    model = network(2, seed=5)
    rows = torch.randn(8, 2, generator=torch.Generator().manual_seed(3)).clamp(-1.4, 1.4)
    batch = exact(model, rows, action_set, use_regions=use_regions)
    axis = torch.linspace(-1.5, 1.5, 1201)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        good = grid[model(grid)[:, 1] - model(grid)[:, 0] >= 1e-5]
    for row, status, cost in zip(rows, batch.statuses, batch.cost.tolist(), strict=True):
        if status is Status.FAVOURABLE:
            continue
        seen = float(((good - row).abs() * action_set.column_weights).sum(1).min()) if len(good) else inf
        assert (status in PROVEN) == isinf(seen)
        assert isinf(seen) or seen - 0.005 <= cost <= seen + 1e-4


def test_no_action_of_the_set_leaves_the_bounds() -> None:
    action_set, rows = people(6, seed=9, max_changes=2)
    model = network(10, seed=7)
    read = read_network(as_predictor(model, example=rows), rows)
    generator = torch.Generator().manual_seed(0)
    for budget in (inf, 3.0):
        for row, actions in zip(rows, build_action_models(action_set, rows), strict=True):
            near = actions.restrict_to(budget)
            bounds = compute_bounds(read, build_region(near, budget), near.row, 1)
            some = row.repeat(400, 1)
            delta = action_set.project(some, torch.randn(some.shape, generator=generator) * 4)
            delta = delta[action_set.cost(some, delta) <= budget]
            values = (row + delta).double().numpy()
            for layer, low, high in zip(read.nonlinearities, bounds.low, bounds.high, strict=True):
                before = values @ layer.preactivation.matrix.T + layer.preactivation.offset
                assert (before >= low - 1e-9).all() and (before <= high + 1e-9).all()
                values = np.concatenate((values, np.maximum(before, 0)), 1)
            margins = read.margins(1)
            said = values @ margins.matrix.T + margins.offset
            assert (said >= bounds.margin_low - 1e-9).all() and (said <= bounds.margin_high + 1e-9).all()


def test_every_optimum_holds_in_the_model_at_the_confidence_asked_for() -> None:
    action_set, rows = people(5, seed=10)
    model = network(10, seed=4, hidden=8)
    batch = exact(model, rows, action_set, confidence=0.7)
    with torch.no_grad():
        before, margin = (target_margin(model(points), batch.target) for points in (batch.factual, batch.points))
    asked = batch.found & (before < 0)
    assert bool(asked.any())
    assert bool((torch.sigmoid(margin[asked]) >= 0.7 - 1e-6).all())
    # Nothing is asked of people who are accepted already, whatever the confidence.
    assert bool((batch.delta[before > 0] == 0).all())
    assert torch.equal(action_set.project(batch.factual, batch.delta), batch.delta)


def test_out_of_time_the_best_action_known_comes_with_a_bound_that_no_action_beats() -> None:
    action_set, rows = people(10, seed=3, max_changes=3)
    model = network(10, seed=1, hidden=24)
    batch = exact(model, rows, action_set, time_limit=1e-9)
    assert batch.bound is not None
    for row, status in enumerate(batch.statuses):
        least = least_cost(model, rows[row], action_set, 1)
        if status is Status.BOUNDED:
            assert float(batch.bound[row]) <= least + 1e-4 and least <= float(batch.cost[row]) * 1.0001
            assert 0 < float(batch.gap[row]) <= 1
    assert Status.NOT_FOUND not in batch.statuses or bool((~batch.found).any())


def test_the_heuristic_never_beats_the_optimum() -> None:
    action_set, rows = people(30, seed=12, max_changes=3)
    model = network(10, seed=9)
    optimum = solve(model, rows, action_set, target=1, method="exact", progress=False)
    for effort in ("fast", "thorough"):
        batch = solve(model, rows, action_set, target=1, method=MinimalCost(effort=effort), progress=False)  # type: ignore[arg-type]
        both = batch.found & optimum.found
        assert bool((batch.cost[both] >= optimum.cost[both] * (1 - 1e-4)).all())
        assert not bool((batch.found & ~optimum.found).any())


def test_an_operation_that_is_not_piecewise_linear_is_named() -> None:
    action_set, rows = people(4, seed=1)
    model = filled(nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 2)), torch.Generator().manual_seed(1))
    with pytest.raises(ModelError, match="tanh"):
        exact(model, rows, action_set)


def test_a_space_known_only_by_its_projection_is_refused() -> None:
    space = BoxSpace(torch.zeros(10), torch.ones(10), torch.ones(10))
    with pytest.raises(DataError, match="BoxSpace"):
        solve(network(10, 1), torch.zeros(3, 10), space, target=torch.tensor([0, 1, 1]), method="exact", progress=False)


def test_a_function_has_no_readable_weights() -> None:
    action_set, rows = people(4, seed=1)
    model = network(10, seed=1)
    predictor = as_predictor(lambda x: model(torch.as_tensor(x)).detach().numpy(), example=rows, twin=lambda x: model(x))
    with pytest.raises(ModelError, match="weights"):
        exact(predictor, rows, action_set)
    # Where all actions can be listed none are needed.
    agrees_with_the_list(model, rows, action_set, exact(predictor, rows, action_set, max_enumerated=1000))


def test_a_model_without_gradient_is_solved_exactly_where_all_actions_can_be_listed() -> None:
    action_set, rows = people(4, seed=2)
    model = network(10, seed=1)
    predictor = as_predictor(lambda x: model(torch.as_tensor(x)).detach().numpy(), example=rows, head="logits")
    agrees_with_the_list(model, rows, action_set, exact(predictor, rows, action_set, max_enumerated=1000))


def test_a_twin_that_is_another_model_is_refused() -> None:
    action_set, rows = people(6, seed=1)
    model = network(10, seed=1)
    predictor = as_predictor(lambda x: model(torch.as_tensor(x)).detach().numpy(), example=rows, twin=network(10, seed=2))
    with pytest.raises(ModelError, match="does not compute"):
        exact(predictor, rows, action_set)


@pytest.mark.parametrize(
    "settings",
    [{"confidence": 1.0}, {"confidence": "high"}, {"time_limit": 0.0}, {"gap": -1.0}, {"slack": -1.0}, {"activations": "left out"}],
)
def test_settings_are_checked_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(settings))):
        Exact(**settings)  # type: ignore[arg-type]
