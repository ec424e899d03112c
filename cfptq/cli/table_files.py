"""Tables of people in CSV and Parquet files.

pandas renames a column that stands twice, takes surplus cells of a row for its index, and fills missing ones, all without a word. A CSV
file is therefore checked cell by cell before pandas reads it.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from cfptq.errors import FileError
from cfptq.io.files import check_regular_file, describe_os_error

if TYPE_CHECKING:
    import pandas as pd

#: Characters that separate cells in other dialects of CSV, and their names.
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
#: Endings of the names that tables may have, and their kinds.
KINDS = {".csv": "CSV", ".csv.gz": "CSV", ".parquet": "Parquet"}
#: Encodings of CSV files that are read. The mark of the first is skipped.
ENCODING = "utf-8-sig"


def read_table(path: Path) -> pd.DataFrame:
    """Read the rows of a CSV or Parquet file.

    Raises:
        FileError: the file is missing, empty, cut off or of another kind, two columns have one name, a row has too many or too few cells,
            or the file is not text in UTF-8 with commas.
    """
    kind = next((kind for ending, kind in KINDS.items() if path.name.lower().endswith(ending)), None)
    if kind is None:
        raise FileError(f"{path} is neither CSV nor Parquet by its name. Give a .csv, .csv.gz or .parquet file.")
    check_regular_file(path)
    frame = _read_csv(path) if kind == "CSV" else _read_parquet(path)
    _check_names([str(name) for name in frame.columns], path)
    if len(frame) == 0:
        raise FileError(f"{path} holds no rows.")
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file whose every row has one cell for each column."""
    import pandas as pd

    try:
        with _open_text(path) as file:
            _check_cells(csv.reader(file, strict=True), path)
        with _open_text(path) as file:
            # index_col=False keeps the first column from becoming an index.
            return pd.read_csv(file, index_col=False)
    except UnicodeDecodeError as error:
        raise FileError(f"{path} must be text in UTF-8, and byte {error.object[error.start]:#04x} is not. Save it as UTF-8.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{path} is cut off or damaged ({error}). Write it again.") from error
    except (csv.Error, ValueError) as error:
        raise FileError(f"{path} cannot be read as CSV: {str(error).rstrip('.')}.") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read as CSV: {describe_os_error(error)}.") from error


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """Open a CSV file, packed or not, as text."""
    is_packed = path.name.lower().endswith(".gz")
    with gzip.open(path) if is_packed else path.open("rb") as binary:
        yield TextIOWrapper(cast("IO[bytes]", binary), encoding=ENCODING, newline="")


def _check_cells(rows: Iterable[Sequence[str]], path: Path) -> None:
    """Check that all rows of a CSV file have as many cells as its first, which holds distinct names."""
    names: Sequence[str] = ()
    for number, row in enumerate(rows, start=1):
        if not row:
            continue  # pandas skips empty lines too.
        if not names:
            names = row
            _check_header(names, path)
        elif len(row) != len(names):
            raise FileError(
                f"Each row of {path} must have {len(names)} cells, as its header has, and row {number} has {len(row)}. "
                "Put cells that hold a comma in double quotes."
            )


def _check_header(names: Sequence[str], path: Path) -> None:
    joined = ",".join(names)
    for separator, word in OTHER_SEPARATORS.items():
        if joined.count(separator) >= (1 if len(names) == 1 else 2 * len(names)):
            raise FileError(
                f"{path} must be separated by commas, and its header has {word}. Save it with commas and decimal points, or as Parquet."
            )
    _check_names(names, path)


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FileError(f"Each column of {path} must have a name of its own, and {twice[0]!r} stands twice. Rename or drop one.")


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except OSError as error:
        raise FileError(f"{path} cannot be read as Parquet: {describe_os_error(error)}.") from error
    except (ValueError, pa.ArrowException) as error:
        raise FileError(f"{path} cannot be read as Parquet: {' '.join(str(error).split()).rstrip('.')}.") from error
