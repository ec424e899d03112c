"""Rich tables as plain text."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

#: Characters of a line where tables are printed as text.
TEXT_WIDTH = 120


def as_text(what: RenderableType) -> str:
    """What ``print`` shows of tables and sentences: plain lines of :data:`TEXT_WIDTH` characters."""
    text = StringIO()
    Console(file=text, width=TEXT_WIDTH, no_color=True, highlight=False).print(what)
    return text.getvalue().rstrip("\n")
