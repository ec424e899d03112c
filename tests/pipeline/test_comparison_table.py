"""The table of a comparison: intervals where they fit, and the columns that fit beside them."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from cfptq.pipeline.comparison import COLUMNS, INTERVALS, Comparison

ENTRY: dict[str, Any] = {
    "average_bits": 4.0,
    "stored_bytes": 4096,
    "accuracy": 0.81,
    "boundary_disagreement": 0.0123,
    "validity_drop": 0.0234,
    "favourable_rate_drift": 0.001,
    "ci95": {"boundary_disagreement": [0.0101, 0.0156], "validity_drop": [0.0199, 0.0267]},
}


def print_table(width: int | None, entry: dict[str, Any] = ENTRY) -> str:
    comparison = Comparison("people", 0, {"accuracy": 0.82}, {"4.0": {"faithful": entry}}, "4.0")
    console = Console(width=width or 400, record=True, file=StringIO())
    console.print(comparison.table(width=width))
    return console.export_text()


def test_a_wide_table_shows_both_intervals_and_says_what_they_are() -> None:
    shown = print_table(None)
    assert "0.012 [0.010, 0.016]" in shown and "0.023 [0.020, 0.027]" in shown
    assert INTERVALS.strip() in shown
    assert all(heading in shown for heading, _, _ in COLUMNS)


@pytest.mark.parametrize("width", [80, 100, 110, 130, 160, 200])
def test_every_table_fits_its_terminal_without_cutting_a_number(width: int) -> None:
    shown = print_table(width)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    assert ("0.012 [0.010, 0.016]" in shown) == (width >= 102)
    assert "0.0010" in shown


def test_a_value_without_an_interval_stands_alone() -> None:
    shown = print_table(None, {**ENTRY, "ci95": {"boundary_disagreement": [None, None]}})
    assert "0.012 " in shown and "[" not in shown.split("faithful")[1].splitlines()[0]
