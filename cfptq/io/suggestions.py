"""Suggestions for mistyped names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """Return ``" (did you mean 'age'?)"`` if a known name is similar to ``given``, else an empty string.

    Case, spaces, hyphens, dots and underscores make no difference.
    """
    names = {_normalize_name(name): str(name) for name in known}
    close = difflib.get_close_matches(_normalize_name(given), list(names), n=1, cutoff=0.6)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def _normalize_name(name: object) -> str:
    return str(name).strip().casefold().replace("-", "_").replace(" ", "_").replace(".", "_")
