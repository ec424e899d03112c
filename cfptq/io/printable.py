"""Text from files and tables, made safe to show."""

from __future__ import annotations


def escape_unprintable(text: str) -> str:
    r"""Return a text with characters that a terminal would obey, or that hide others, as ``\x1b`` or ``\u202e``.

    Line ends and tabs stay. Other spaces become a plain space.
    """
    if text.isprintable():
        return text
    return "".join(map(_escape_one, text))


def _escape_one(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return " " if character.isspace() and ord(character) >= 0x80 else character.encode("unicode_escape").decode("ascii")
