"""Tables as CSV files that a spreadsheet opens without running anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cfptq.io.atomic import write_text
from cfptq.io.printable import escape_unprintable

if TYPE_CHECKING:
    import pandas as pd

#: First characters that make a spreadsheet read a cell as a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_csv(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Write a table as CSV by an atomic write, with formulas in texts and names made plain.

    Args:
        path: File to write. An existing file is replaced.
        frame: Rows. The index is left out.

    Raises:
        FileError: The folder does not exist or cannot be written.
    """
    plain = frame.map(neutralize_formula)
    plain.columns = [neutralize_formula(str(name)) for name in frame.columns]
    write_text(path, plain.to_csv(index=False, lineterminator="\n"))


def neutralize_formula(cell: Any) -> Any:
    """Return a text with an apostrophe before what a spreadsheet would read as a formula, and anything else as it is.

    Characters that a terminal would obey are escaped.
    """
    if not isinstance(cell, str):
        return cell
    plain = escape_unprintable(cell)
    return f"'{plain}" if plain.lstrip(" ").startswith(FORMULA_STARTS) else plain
