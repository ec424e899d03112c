"""Progress is shown in terminals, notebooks and logs, and only for loops that take long."""

from __future__ import annotations

import io
import logging
import sys
import types
from collections.abc import Iterator

import pytest
import rich.console
from rich.table import Table

from cfptq.io import progress
from cfptq.io.progress import format_progress, track


class Clock:
    """A clock that moves only when the loop works."""

    def __init__(self) -> None:
        self.now = 100.0

    def work(self, seconds: float, items: int) -> Iterator[int]:
        for item in range(items):
            self.now += seconds
            yield item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", lambda: made.now)
    return made


def run(clock: Clock, seconds: float, items: int, **options: object) -> list[int]:
    return list(track(clock.work(seconds, items), "rounding layers", total=items, **options))  # type: ignore[arg-type]


def test_a_log_gets_a_line_after_two_seconds_then_one_in_ten_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(clock, 1.0, 30) == list(range(30))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "rounding layers: 3 of 30, 3.0 s, about 27 s left",
        "rounding layers: 14 of 30, 14 s, about 16 s left",
        "rounding layers: 25 of 30, 25 s, about 5.0 s left",
        "rounding layers: 30 of 30, 30 s",
    ]


def test_a_short_loop_writes_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 0.1, 15)
    assert capsys.readouterr() == ("", "")


def test_a_loop_that_is_left_early_says_how_far_it_came(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for item in (loop := track(clock.work(1.5, 10), "training", total=10)):
        if item == 3:
            break
    loop.close()  # type: ignore[attr-defined]
    assert capsys.readouterr().err.splitlines()[-1] == "training: 3 of 10, 4.5 s, about 10 s left"


def test_an_unknown_number_of_items_is_counted_without_an_estimate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    list(track(clock.work(3.0, 2), "drawing rows"))
    assert capsys.readouterr().err.splitlines() == ["drawing rows: 1, 3.0 s", "drawing rows: 2, 6.0 s"]


def test_the_server_log_records_what_was_done_also_where_nothing_is_shown(
    clock: Clock, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="cfptq"):
        run(clock, 1.0, 12, enabled=False)
    assert capsys.readouterr().err == ""
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("cfptq", "INFO", "rounding layers: 12 of 12, 12 s")
    ]


def test_the_logger_writes_nothing_on_its_own() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("cfptq").handlers)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_that_is_removed_at_the_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    run(clock, 1.0, 5)
    assert "rounding layers" in screen.getvalue()
    assert "about" not in screen.getvalue()


def test_a_notebook_shows_one_bar_that_is_redrawn_in_place(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Table] = []

    class Handle:
        def update(self, table: Table) -> None:
            shown.append(table)

    def display(table: Table, display_id: bool) -> Handle:
        assert display_id and not shown, "only the first drawing opens a display"
        shown.append(table)
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    run(clock, 0.5, 3)
    assert shown == []
    run(clock, 0.5, 10)
    assert len(shown) == 7  # 2.5 s, 3.0 s … 5.0 s, and the end
    last = rich.console.Console(width=100, force_jupyter=False, record=True, file=io.StringIO())
    last.print(shown[-1])
    assert "rounding layers" in last.export_text()
    assert shown[-1]._repr_mimebundle_([], [])["text/html"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.26, "0.3 s"), (9.96, "10 s"), (75.2, "75 s"), (650.0, "11 min"), (3 * 3600 + 1440, "3.4 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_progress("x", 0, None, seconds) == f"x: 0, {text}"
