"""benchmarks/README.md is what the results files say, and what it names exists."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import paper_index  # noqa: E402
import qat  # noqa: E402
import tables  # noqa: E402


def test_the_page_is_what_the_script_writes() -> None:
    assert (ROOT / "benchmarks" / "README.md").read_text() == tables.document()


def test_the_page_begins_with_ten_lines() -> None:
    assert [line.split(".")[0] for line in tables.findings()] == [str(number) for number in range(1, 11)]


def test_each_table_and_figure_of_the_paper_is_named_once() -> None:
    names = [exhibit.name for exhibit in paper_index.EXHIBITS]
    assert names == [*(f"Table {number}" for number in range(1, 33)), *(f"Figure {number}" for number in range(3, 27))]


def test_what_reproduces_a_table_of_the_paper_exists() -> None:
    sections = {heading for heading, *_ in tables.SECTIONS}
    for exhibit in paper_index.EXHIBITS:
        assert all((ROOT / "benchmarks" / script).is_file() for script in exhibit.scripts), exhibit.name
        assert all((ROOT / "benchmarks" / "results" / file).is_file() for file in exhibit.results), exhibit.name
        has_place = exhibit.state in (paper_index.MEASURED, paper_index.PARTLY, paper_index.NUMBERS)
        assert has_place <= (bool(exhibit.results) and exhibit.section in sections), exhibit.name
        assert exhibit.state != paper_index.OPEN or not exhibit.scripts, exhibit.name


def test_each_deviation_names_code_that_exists() -> None:
    for deviation in paper_index.DEVIATIONS:
        assert deviation.name in (ROOT / deviation.module).read_text(), deviation.paper


def test_every_row_of_the_training_script_is_in_a_results_file_or_named_as_not_measured() -> None:
    contents = [json.loads((ROOT / "benchmarks" / "results" / name).read_text()) for name in ("training.json", "qat.json")]
    page = (ROOT / "benchmarks" / "README.md").read_text()
    assert all(row in page for row in qat.list_unmeasured(*contents))
    drawn = {name: [run["curve"] for run in entry["runs"] if run["curve"]] for name, entry in contents[1]["datasets"].items()}
    assert {name for name, curves in drawn.items() if curves} == set(qat.DATASETS["curve"])
    for curves in drawn.values():
        assert all({*qat.CURVED, "faithful"} <= set(curve[f"{budget:g}"]) for curve in curves for budget in qat.CURVE)


def test_every_trained_row_says_which_epoch_was_kept() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "training.json").read_text())
    assert content["seeds"] == "development"
    for entry in content["datasets"].values():
        for run in entry["runs"]:
            assert all("best_epoch" in method for name, method in run["methods"].items() if name != "faithful")
