"""The headline benchmark's rows, its choice of the best others, and its committed results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cfptq.allocation import LayerScores, allocate_greedily

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import headline  # noqa: E402
import reporting  # noqa: E402


def scores(*per_weight: float) -> LayerScores:
    sizes = (6656, 4096, 128)
    return LayerScores(("a", "b", "c"), sizes, tuple(s * n for s, n in zip(per_weight, sizes, strict=True)), "hand")


def test_what_greedy_leaves_is_spent() -> None:
    greedy = allocate_greedily(scores(0.004, 0.003, 0.03), 4.0, (2, 3, 4, 7))
    spent = headline.spend_most(scores(0.004, 0.003, 0.03), 4.0, (2, 3, 4, 7))
    assert greedy.bits == (4, 3, 7) and spent.bits == (4, 4, 4)
    assert spent.average_bits == 4.0 > greedy.average_bits


def test_of_equal_costs_the_larger_objective_is_taken() -> None:
    equal = LayerScores(("a", "b"), (100, 100), (1.0, 2.0), "hand")
    assert headline.spend_most(equal, 3.0, (2, 4)).bits == (2, 4)
    assert headline.spend_most(equal, 3.0, (2, 4), {"a": 4}).bits == (4, 2)


def test_the_best_other_method_has_the_least_disagreement_in_its_better_row() -> None:
    summary = {name: {"boundary_disagreement": {"mean": value}} for name, value in
               {"ptq": 0.3, "cf-ptq": 0.4, "cf-ptq (spent)": 0.2, "faithful": 0.1, "ort-int8": 0.05}.items()}  # fmt: skip
    assert headline.choose_best(summary, headline.FOUR_BITS) == "cf-ptq (spent)"
    assert headline.choose_best(summary, headline.EIGHT_BITS) == "ort-int8"


@pytest.mark.parametrize("name", sorted(headline.read_results()))
def test_committed_results_follow_from_their_runs(name: str) -> None:
    content = headline.read_results()[name]
    assert [run["seed"] for run in content["runs"]] == list(reporting.REPORTING_SEEDS[name])
    assert content["summary"] == headline.summarize_runs(name, content["runs"])
    index = reporting.read_index(reporting.NETWORKS)
    for run in content["runs"]:
        assert run["network"]["sha256"] == index[f"{name}-{run['seed']}.safetensors"]
    assert len(content[reporting.RUNS_KEY]) >= 1
