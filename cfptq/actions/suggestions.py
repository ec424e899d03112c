"""Near misses: what a user who mistyped a name probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """``" (did you mean 'age'?)"`` for a near miss, else an empty string. Case and separators are overlooked."""
    names = {_folded(name): str(name) for name in known}
    close = difflib.get_close_matches(_folded(given), list(names), n=1, cutoff=0.6)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def _folded(name: object) -> str:
    return str(name).strip().casefold().replace("-", "_").replace(" ", "_").replace(".", "_")
