"""Comparisons, results and recourse in print and in notebooks, with names as they are."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

import cfptq
from cfptq.pipeline.comparison import Comparison
from cfptq.recourse import solve
from cfptq.testing import random_classifier, small_action_set, small_people

NAMES = ("mine [b]", "mine[/x]", "<b>bold</b>", "PT2E needs torchao. Run pip install 'cfptq[pt2e]'.")
ENTRY = {"average_bits": 4.0, "validity_drop": 0.1}


def comparison_named(name: str, part: str) -> Comparison:
    parts: dict[str, object] = {"dataset": "people", "seed": 0, "fp32": ENTRY, "budgets": {"4.0": {"ptq": ENTRY}}, "headline": "4.0"}
    changes: dict[str, object] = {
        "dataset": name,
        "budgets": {"4.0": {name: ENTRY}},
        "warnings": (name,),
        "unavailable": {"pt2e-int8": name},
    }
    return Comparison(**parts | {part: changes[part]})  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["dataset", "budgets", "warnings", "unavailable"])
@pytest.mark.parametrize("name", NAMES)
def test_names_and_hints_of_a_comparison_are_printed_whole(name: str, part: str) -> None:
    comparison = comparison_named(name, part)
    assert name in str(comparison)
    console = Console(width=200, record=True, file=StringIO())  # As a user has it, with markup.
    console.print(comparison)
    assert name in console.export_text()


def test_html_of_a_comparison_escapes_names() -> None:
    shown = comparison_named("<b>bold</b>", "budgets")._repr_html_()
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown and "<b>" not in shown


def test_html_of_a_result_and_of_recourse() -> None:
    action_set = small_action_set()
    rows = action_set.encode(small_people())
    model = random_classifier(rows)
    result = cfptq.calibrate(model, [rows], action_set, method="ptq", progress=False)
    shown = result._repr_html_()
    assert shown.startswith("<pre") and all(name in shown for name in result.bits)
    odd = replace(result, network=replace(result.network, skipped={"<i>": "left [/out]"}))
    assert "&lt;i&gt;" in odd._repr_html_() and "left [/out]" in odd._repr_html_()
    batch = solve(model, rows, action_set, target=1, method="projected-gradient", progress=False)
    assert f"for {len(rows)} rows" in batch._repr_html_() and "already favourable" in batch._repr_html_()
    assert "0 rows" in batch[:0]._repr_html_()
