"""Rich tables as plain text."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

#: Width of a table that is printed as text. Longer cells are wrapped.
TEXT_WIDTH_CHARACTERS = 120


def as_text(renderable: RenderableType) -> str:
    """Render a Rich table, sentence or group as plain lines of at most :data:`TEXT_WIDTH_CHARACTERS`."""
    text = StringIO()
    Console(file=text, width=TEXT_WIDTH_CHARACTERS, no_color=True, highlight=False).print(renderable)
    return text.getvalue().rstrip("\n")
