"""Budgets and allocations, against the paper's rule by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfptq.allocation import Allocator, BitAllocation, Budget, BudgetUnit, LayerScores, allocate_greedily, allocate_uniformly
from cfptq.errors import BudgetError

WIDTHS = (2, 3, 4, 8)


def scored(*layers: tuple[int, float]) -> LayerScores:
    """Layers a, b, c ... of (parameters, score)."""
    names = tuple("abcdefghij"[: len(layers)])
    return LayerScores(names, tuple(n for n, _ in layers), tuple(s for _, s in layers), "by hand")


class TestBudget:
    def test_counts_average_bits_over_all_weights(self) -> None:
        assert Budget.average(4).ceiling([100, 50]) == 600
        assert Budget.of(3.5) == Budget(3.5, BudgetUnit.AVERAGE_BITS)

    def test_is_exact_in_decimal(self) -> None:
        # 3.3 * 10 and 2.3 * 100 fall just below 33 and 230 in binary.
        assert Budget.average(3.3).ceiling([10]) == 33
        assert Budget.average(2.3).ceiling([100]) == 230
        assert Budget.average(np.float64(2.3)).ceiling([100]) == 230

    def test_in_bytes_counts_what_a_file_stores(self) -> None:
        budget = Budget.bytes(1000)
        assert budget.cost(9, 2) == 3
        assert budget.cost(9, 3) == budget.cost(9, 4) == 5
        assert budget.cost(9, 8) == 9
        assert budget.ceiling([9, 9]) == 1000

    @pytest.mark.parametrize("amount", [0, -1, float("nan"), float("inf"), 10**400, "4", None, True])
    def test_refuses_what_is_no_positive_number(self, amount: object) -> None:
        with pytest.raises(BudgetError):
            Budget.average(amount)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("budget", "least"), [(1.9, "2 average bits"), (Budget.total(299), "300 total bits"), (Budget.bytes(37), "38 bytes")]
    )
    def test_below_the_lowest_width_is_refused_and_the_least_that_would_do_is_named(self, budget: Budget | float, least: str) -> None:
        with pytest.raises(BudgetError, match=least):
            allocate_greedily(scored((100, 1.0), (50, 1.0)), budget)

    def test_that_pins_make_impossible_is_refused_and_the_least_named_does(self) -> None:
        scores = scored((100, 1.0), (50, 1.0), (7, 1.0))
        with pytest.raises(BudgetError, match=r"a pinned to 8 bits.*takes 5\.8217 average bits") as refusal:
            allocate_greedily(scores, 4.0, pinned={"a": 8})
        assert "pin fewer bits" in str(refusal.value)
        assert allocate_greedily(scores, 5.8217, pinned={"a": 8}).bits == (8, 2, 2)

    def test_refuses_a_pin_that_names_no_layer_and_suggests_the_nearest(self) -> None:
        scores = LayerScores(("hidden.0", "head"), (10, 10), (1.0, 1.0), "by hand")
        with pytest.raises(BudgetError, match="Did you mean 'head'"):
            allocate_greedily(scores, 4, pinned={"haed": 8})
        with pytest.raises(BudgetError, match=r"The layers are hidden\.0, head"):
            allocate_greedily(scores, 4, pinned={"xyz": 8})

    @pytest.mark.parametrize("bits", [5, 32, 0, "8"])
    def test_refuses_a_pin_to_a_width_that_is_no_candidate(self, bits: int) -> None:
        with pytest.raises(BudgetError, match="Choose one of 2, 3, 4, 8"):
            allocate_greedily(scored((10, 1.0)), 4, pinned={"a": bits})

    @pytest.mark.parametrize("widths", [(), (4, 4), (1, 8), (16,)])
    @pytest.mark.parametrize("allocator", [allocate_greedily, allocate_uniformly])
    def test_refuses_candidate_widths_that_no_format_has(self, allocator: Allocator, widths: tuple[int, ...]) -> None:
        with pytest.raises(BudgetError, match="Candidate widths"):
            allocator(scored((10, 1.0)), 8, widths)


class TestGreedy:
    def test_gives_bits_to_the_largest_score_per_parameter_first(self) -> None:
        # s/n: a 0.01, b 0.1, c 0.05. At 4 average bits there are 640 bits, 320 are taken by 2 bits everywhere.
        # b: 2 -> 8 takes 300; 20 are left. c: 2 -> 3 takes 10, 3 -> 4 another 10. Nothing is left for a.
        assert allocate_greedily(scored((100, 1.0), (50, 5.0), (10, 0.5)), 4.0).bits == (2, 8, 4)

    def test_is_not_ruled_by_the_score_alone(self) -> None:
        # a scores more, but b scores more per weight: 8 bits for b cost 60, for a they would cost 600.
        assert allocate_greedily(scored((100, 10.0), (10, 2.0)), Budget.total(220 + 60)).bits == (2, 8)

    def test_spends_on_the_next_layer_what_the_first_cannot_use(self) -> None:
        # a is first, reaches 4 and cannot pay 400 for 8; the 30 left over widen b to 4 and then nothing.
        assert allocate_greedily(scored((100, 9.0), (15, 0.1)), Budget.total(230 + 200 + 30)).bits == (4, 4)

    def test_breaks_ties_by_execution_order(self) -> None:
        assert allocate_greedily(scored((10, 1.0), (10, 1.0)), 5.0).bits == (8, 2)
        assert allocate_greedily(scored((10, 0.0), (20, 0.0)), 4.0).bits == (8, 2)

    def test_keeps_pins_and_lets_them_count(self) -> None:
        scores = scored((100, 9.0), (100, 1.0), (100, 2.0))
        assert allocate_greedily(scores, 4.0, pinned={"a": 2}).bits == (2, 2, 8)
        assert allocate_greedily(scores, 4.0, pinned={"b": 8}).bits == (2, 8, 2)

    def test_all_eight_bits_where_the_budget_is_generous(self) -> None:
        assert allocate_greedily(scored((3, 1.0), (4, 0.0)), 32).bits == (8, 8)

    def test_in_bytes_never_stores_three_bits_where_four_take_the_same_room(self) -> None:
        allocation = allocate_greedily(scored((100, 2.0), (100, 1.0)), Budget.bytes(75))
        assert allocation.bits == (4, 2)
        assert allocation.weight_bytes == 75

    def test_only_uses_the_candidate_widths(self) -> None:
        assert allocate_greedily(scored((10, 1.0), (10, 2.0)), 6.0, widths=(8, 4)).bits == (4, 8)


layers = st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1e6, allow_nan=False)), min_size=1, max_size=6)
budgets = st.one_of(
    st.floats(2, 9).map(Budget.average), st.floats(1.0, 5.0).map(lambda factor: factor), st.integers(1, 1500).map(Budget.bytes)
)


@settings(max_examples=300, deadline=None)
@given(layers, budgets, st.data())
def test_greedy_meets_the_budget_and_leaves_no_affordable_upgrade(
    sizes: list[tuple[int, float]], wish: Budget | float, data: st.DataObject
) -> None:
    scores = scored(*sizes)
    budget = Budget.total(wish * 2 * sum(scores.parameters)) if isinstance(wish, float) else wish
    pinned = {name: data.draw(st.sampled_from(WIDTHS)) for name in data.draw(st.sets(st.sampled_from(scores.names)))}

    def cost(bits: tuple[int, ...]) -> int:
        return sum(budget.cost(n, b) for n, b in zip(scores.parameters, bits, strict=True))

    start = tuple(pinned.get(name, 2) for name in scores.names)
    ceiling = budget.ceiling(scores.parameters)
    if cost(start) > ceiling:
        with pytest.raises(BudgetError):
            allocate_greedily(scores, budget, pinned=pinned)
        return
    allocation = allocate_greedily(scores, budget, pinned=pinned)
    assert cost(allocation.bits) <= ceiling
    for index, (name, bits) in enumerate(allocation):
        assert bits == pinned.get(name, bits)
        if name not in pinned:
            for wider in WIDTHS:
                upgraded = (*allocation.bits[:index], wider, *allocation.bits[index + 1 :])
                assert wider <= bits or cost(upgraded) > ceiling
    assert allocate_greedily(scores, budget, pinned=pinned) == allocation


@settings(max_examples=100, deadline=None)
@given(layers, st.floats(2, 9))
def test_greedy_follows_the_rule_turn_by_turn(sizes: list[tuple[int, float]], average: float) -> None:
    scores = scored(*sizes)
    bits = [2] * len(sizes)
    while True:
        affordable = []
        for index, (n, score) in enumerate(sizes):
            wider = next((width for width in WIDTHS if width > bits[index]), None)
            if wider is not None:
                total = sum(m * b for (m, _), b in zip(sizes, bits, strict=True)) + n * (wider - bits[index])
                if total <= Budget.average(average).ceiling(scores.parameters):
                    affordable.append((-score / n, index, wider))
        if not affordable:
            break
        _, index, wider = min(affordable)
        bits[index] = wider
    assert allocate_greedily(scores, average).bits == tuple(bits)


def test_greedy_comes_within_one_layer_of_the_best_there_is() -> None:
    # Greedy by ratio loses at most what the first layer that did not fit would have brought.
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = [(int(rng.integers(1, 40)), float(rng.random())) for _ in range(4)]
        scores, budget = scored(*sizes), Budget.average(4)
        worth = [sum(s * b for s, b in zip(scores.scores, allocate_greedily(scores, budget).bits, strict=True))]
        best = max(
            sum(s * b for s, b in zip(scores.scores, bits, strict=True))
            for bits in itertools.product(WIDTHS, repeat=4)
            if sum(n * b for n, b in zip(scores.parameters, bits, strict=True)) <= budget.ceiling(scores.parameters)
        )
        assert best - 4 * max(scores.scores) - 1e-9 <= worth[0] <= best + 1e-9


class TestUniform:
    def test_takes_the_widest_width_that_fits(self) -> None:
        assert allocate_uniformly(scored((10, 1.0), (20, 5.0)), 4.5).bits == (4, 4)
        assert allocate_uniformly(scored((10, 1.0), (20, 5.0)), 8).bits == (8, 8)
        assert allocate_uniformly(scored((10, 1.0), (20, 5.0)), Budget.bytes(15)).bits == (4, 4)

    def test_leaves_pins_alone(self) -> None:
        assert allocate_uniformly(scored((10, 1.0), (30, 5.0)), 4, pinned={"a": 8}).bits == (8, 2)

    def test_refuses_what_cannot_be_met(self) -> None:
        with pytest.raises(BudgetError, match="at least"):
            allocate_uniformly(scored((10, 1.0)), 1)


class TestBitAllocation:
    def test_counts_bits_and_stored_bytes(self) -> None:
        allocation = BitAllocation(("a", "b", "c"), (10, 5, 3), (2, 3, 8))
        assert allocation.total_bits == 20 + 15 + 24
        assert allocation.average_bits == pytest.approx(59 / 18)
        # 20 bits -> 3 bytes; 5 weights in 4-bit containers -> 3 bytes; 3 bytes.
        assert allocation.weight_bytes == 9

    def test_is_read_by_layer(self) -> None:
        allocation = BitAllocation(("a", "b"), (10, 30), (2, 8))
        assert allocation["b"] == 8
        assert allocation.by_layer() == {"a": 2, "b": 8}
        assert str(allocation) == "a: 2, b: 8 (6.50 bits on average)"

    @pytest.mark.parametrize(
        ("names", "parameters", "bits"),
        [((), (), ()), (("a",), (1, 2), (2,)), (("a", "a"), (1, 1), (2, 2)), (("a",), (0,), (2,)), (("a",), (1,), (5,))],
    )
    def test_refuses_what_does_not_fit_together(self, names: tuple[str, ...], parameters: tuple[int, ...], bits: tuple[int, ...]) -> None:
        with pytest.raises(BudgetError):
            BitAllocation(names, parameters, bits)
