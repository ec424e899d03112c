"""Rich tables as plain text and as HTML."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

#: Width of a table that is rendered as text or HTML. Longer cells are wrapped.
TEXT_WIDTH_CHARACTERS = 120
#: Inline styles, because a notebook keeps no style sheet of a cell.
HTML_FORMAT = '<pre style="font-family:monospace;line-height:1.2;white-space:pre;overflow-x:auto">{code}</pre>'


def as_text(renderable: RenderableType) -> str:
    """Render a Rich table, sentence or group as plain lines of at most ``TEXT_WIDTH_CHARACTERS``.

    Square brackets and colons in strings stay as they are.
    """
    text = StringIO()
    _open_console(text, record=False).print(renderable)
    return text.getvalue().rstrip("\n")


def as_html(renderable: RenderableType) -> str:
    """Render a Rich table, sentence or group as HTML for a notebook, with inline styles and escaped text."""
    console = _open_console(StringIO(), record=True)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format=HTML_FORMAT)


def _open_console(file: StringIO, record: bool) -> Console:
    """Open a console that writes to ``file`` alone, whatever terminal or notebook the program runs in."""
    return Console(
        file=file,
        record=record,
        width=TEXT_WIDTH_CHARACTERS,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
