"""Tables as text and HTML keep what data says."""

from __future__ import annotations

import pytest
from rich.console import Group
from rich.table import Table

from cfptq.io.tables import as_html, as_text

HOSTILE = ("mine [b]", "mine[/x]", "pip install 'cfptq[pt2e]'", "a :smile: b", "<script>alert(1)</script>")


def table_of(text: str) -> Table:
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    return table


@pytest.mark.parametrize("text", HOSTILE)
def test_brackets_and_colons_are_printed_as_they_are(text: str) -> None:
    assert as_text(Group(table_of(text), text)).count(text) == 5


def test_html_escapes_text_and_carries_its_own_styles() -> None:
    shown = as_html(Group(table_of("mine[/x]"), *HOSTILE))
    assert "mine[/x]" in shown and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "cfptq[pt2e]" in shown
    assert "<script" not in shown and "<style" not in shown and shown.startswith("<pre style=")


def test_text_holds_no_escape_sequences_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in as_text(table_of("plain"))
