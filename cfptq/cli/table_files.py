"""Tables of people in CSV and Parquet files.

pandas renames a column that stands twice, takes surplus cells of a row for its index, and fills missing ones, all without a word. A CSV
file is therefore checked cell by cell before pandas reads it. Its numbers are rewritten with decimal points first, where cells show how
they are written. ``1,234`` alone does not.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from cfptq.errors import ConfigurationError, FileError
from cfptq.io.files import check_regular_file, describe_os_error

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import WriteableBuffer

#: Characters that separate cells, and their names.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
#: Endings of the names that tables may have, and their kinds.
KINDS = {".csv": "CSV", ".csv.gz": "CSV", ".parquet": "Parquet"}
#: Encoding of CSV files by default. The mark at the start is skipped.
ENCODING = "utf-8-sig"
#: Largest table of people, as text or as columns in memory. A compressed file may hold far more than its own size.
MAX_TABLE_BYTES = 2**29
MAX_TABLE_CELLS = 5 * 10**7  # A cell of a CSV file takes some hundred bytes while it is checked.
MAX_HEADER_CHARACTERS = 2**20
SMALLER = "Keep only the people and columns that the audit needs, or audit parts of the table."
#: Rows of a Parquet file that are read at a time, so that a small file of one repeated value is stopped early.
PARQUET_BATCH_ROWS = 2**16
#: Cells that pandas reads as missing, in columns of numbers.
MISSING = frozenset({"", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A", "-nan", "-NaN"})
_NUMBER_LIKE = re.compile(r"(?=.*\d)[+-]?((\d{1,3}(\.\d{3})+|\d*)(,\d*)?|(\d{1,3}(,\d{3})+|\d*)(\.\d*)?)([eE][+-]?\d+)?")
_SHOWS_DECIMAL_COMMA = re.compile(r"[+-]?(\d{4,}|0\d*|\d{1,3}(\.\d{3})+|),\d+|[+-]?\d+,(\d{1,2}|\d{4,})([eE][+-]?\d+)?")
_SHOWS_THOUSANDS_COMMA = re.compile(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d+)?|[+-]?\d{1,3}(,\d{3})+\.\d+")
_SHOWS_DECIMAL_POINT = re.compile(r"[+-]?(\d{4,}|0\d*|)\.\d+|[+-]?\d+\.(\d{1,2}|\d{4,})([eE][+-]?\d+)?")
_SHOWS_THOUSANDS_POINT = re.compile(r"[+-]?\d{1,3}(\.\d{3}){2,}(,\d+)?|[+-]?\d{1,3}(\.\d{3})+,\d+")
_THREE_AFTER_POINT = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")


@dataclass(frozen=True)
class TableFormat:
    """Form of a CSV file. What is None is detected, or refused where nothing in the file shows it.

    Attributes:
        separator: Character between cells.
        decimal: Decimal mark, "." or ",".
        thousands: Mark between groups of three digits.
        encoding: Encoding of the text. UTF-8 by default.
    """

    separator: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and len(self.separator) != 1:
            raise ConfigurationError(f"The separator must be one character, got {self.separator!r}. Give --sep ';' for semicolons.")
        if self.decimal not in (None, ".", ","):
            raise ConfigurationError(f"The decimal mark must be '.' or ',', got {self.decimal!r}.")
        if self.thousands is not None and (len(self.thousands) != 1 or self.thousands.isalnum()):
            raise ConfigurationError(f"The thousands mark must be one character such as '.', got {self.thousands!r}.")
        if self.thousands is not None and self.thousands == (self.decimal or "."):
            raise ConfigurationError(
                f"Decimal and thousands mark must differ, got {self.thousands!r} for both. Give --decimal too, for example --decimal ','."
            )
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, UnicodeError) as error:
                raise ConfigurationError(f"There is no encoding {self.encoding!r}. Give for example utf-8, latin-1 or cp1252.") from error


@dataclass(frozen=True, eq=False)
class LoadedTable:
    """Rows of a file, and how the file was read.

    Attributes:
        frame: The rows.
        reading: One sentence on separator, decimal mark, thousands mark and encoding. Empty for Parquet.
    """

    frame: pd.DataFrame
    reading: str


def read_table(path: Path) -> pd.DataFrame:
    """Read the rows of a CSV or Parquet file. See ``load_table``."""
    return load_table(path).frame


def load_table(path: Path, form: TableFormat | None = None, text: str | None = None) -> LoadedTable:
    """Read the rows of a CSV or Parquet file, and say how.

    Args:
        path: A .csv, .csv.gz or .parquet file.
        form: Form of a CSV file. By default all of it is detected.
        text: Column that is read as text, such as a key with leading zeros. A table without it is read as it is.

    Raises:
        FileError: the file is missing, empty, cut off or of another kind, two columns have one name, a row has too many or too few cells,
            the text has another encoding, or it is open what its numbers mean.
    """
    kind = next((kind for ending, kind in KINDS.items() if path.name.lower().endswith(ending)), None)
    if kind is None:
        raise FileError(f"{path} is neither CSV nor Parquet by its name. Give a .csv, .csv.gz or .parquet file.")
    check_regular_file(path)
    table = _load_csv(path, form or TableFormat(), text) if kind == "CSV" else LoadedTable(_read_parquet(path), "")
    _check_names([str(name) for name in table.frame.columns], path)
    if len(table.frame) == 0:
        raise FileError(f"{path} holds no rows.")
    return table


def _load_csv(path: Path, form: TableFormat, text: str | None) -> LoadedTable:
    """Read a CSV file whose every row has one cell for each column."""
    import pandas as pd

    try:
        with _open_text(path, form) as file:
            separator = form.separator or _detect_separator(file.readline(MAX_HEADER_CHARACTERS), path)
        with _open_text(path, form) as file:
            rows = _read_rows(csv.reader(file, strict=True, delimiter=separator), path)
        _check_cells(rows, path)
        decimal, thousands, why = _detect_marks(rows, separator, form, path)
        if (decimal, thousands) != (".", None):
            _rewrite_numbers(rows, decimal, thousands, path)
        plain = io.StringIO(newline="")
        csv.writer(plain, lineterminator="\n").writerows(rows)
        plain.seek(0)
        # index_col=False keeps the first column from becoming an index.
        frame = pd.read_csv(plain, index_col=False, skip_blank_lines=False, dtype={text: str} if text in rows[0] else None)
    except UnicodeDecodeError as error:
        wanted = form.encoding or "UTF-8"
        raise FileError(
            f"{path} must be text in {wanted}, and byte {error.object[error.start]:#04x} is not. Save it as UTF-8, or say how it is "
            "encoded, for example by --encoding latin-1."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(f"{path} is cut off or damaged ({error}). Write it again.") from error
    except (csv.Error, ValueError, IndexError) as error:
        raise FileError(f"{path} cannot be read as CSV: {str(error).rstrip('.')}.") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read as CSV: {describe_os_error(error)}.") from error
    marks = f"decimal {'point' if decimal == '.' else 'comma'}, thousands {f'mark {thousands!r}' if thousands else 'without a mark'}"
    return LoadedTable(frame, f"{path.name}: {SEPARATORS.get(separator, repr(separator))}, {marks}, {form.encoding or 'UTF-8'}{why}.")


@contextmanager
def _open_text(path: Path, form: TableFormat) -> Iterator[IO[str]]:
    """Open a CSV file, packed or not, as text."""
    is_packed = path.name.lower().endswith(".gz")
    encoding = form.encoding or ENCODING
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = ENCODING
    with gzip.open(path) if is_packed else path.open("rb") as binary:
        bounded = io.BufferedReader(_BoundedBytes(cast("IO[bytes]", binary), path))
        yield io.TextIOWrapper(bounded, encoding=encoding, newline="")


def _read_rows(reader: Iterable[list[str]], path: Path) -> list[list[str]]:
    """Return the rows that hold anything, up to ``MAX_TABLE_CELLS``."""
    rows, cells = [], 0
    for row in reader:
        cells += len(row)
        if cells > MAX_TABLE_CELLS:
            raise FileError(f"{path} must hold at most {MAX_TABLE_CELLS:,} cells, and holds more. {SMALLER}")
        if row:
            rows.append(row)
    return rows


class _BoundedBytes(io.RawIOBase):
    """Bytes of a file that end in an error beyond ``MAX_TABLE_BYTES``."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self._source, self._path, self._count = source, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        content = self._source.read(len(view))
        self._count += len(content)
        if self._count > MAX_TABLE_BYTES:
            raise _describe_size(self._path)
        view[: len(content)] = content
        return len(content)


def _describe_size(path: Path) -> FileError:
    return FileError(f"{path} must hold at most {MAX_TABLE_BYTES:,} bytes of people, unpacked, and holds more. {SMALLER}")


def _detect_separator(header: str, path: Path) -> str:
    """Return the separator of a header, or refuse a header that two of them could separate."""
    counts = {separator: len(next(csv.reader([header], delimiter=separator), [])) - 1 for separator in SEPARATORS}
    found = [separator for separator, count in counts.items() if count > 0]
    if len(found) > 1:
        most = max(found, key=counts.__getitem__)
        others = [separator for separator in found if separator != most]
        if any(2 * counts[other] > counts[most] for other in others):
            names = " and ".join(SEPARATORS[separator] for separator in found)
            raise FileError(f"The header of {path} has {names}, so that its separator is open. Give --sep.")
        return most
    return found[0] if found else ","


def _check_cells(rows: Sequence[Sequence[str]], path: Path) -> None:
    """Check that all rows of a CSV file have as many cells as its first, which holds distinct names."""
    if not rows:
        raise FileError(f"{path} cannot be read as CSV: it holds no header.")
    names = rows[0]
    _check_names(names, path)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise FileError(
                f"Each row of {path} must have {len(names)} cells, as its header has, and row {number} has {len(row)}. "
                "Put cells that hold the separator in double quotes."
            )


def _detect_marks(rows: Sequence[Sequence[str]], separator: str, form: TableFormat, path: Path) -> tuple[str, str | None, str]:
    """Return decimal mark, thousands mark and what shows them, or refuse a file that leaves them open."""
    if form.decimal is not None:
        return form.decimal, form.thousands, ""
    columns = _list_numeric_columns(rows, form.thousands)
    commas = [(name, cell) for name, cells in columns for cell in cells if "," in cell]
    points = [(name, cell) for name, cells in columns for cell in cells if "." in cell]
    decimal_comma = next((entry for entry in commas if _SHOWS_DECIMAL_COMMA.fullmatch(entry[1])), None)
    thousands_comma = next((entry for entry in commas if _SHOWS_THOUSANDS_COMMA.fullmatch(entry[1])), None)
    decimal_point = next((entry for entry in points if _SHOWS_DECIMAL_POINT.fullmatch(entry[1])), None)
    thousands_point = next((entry for entry in points if _SHOWS_THOUSANDS_POINT.fullmatch(entry[1])), None)
    if form.thousands == ",":
        return ".", ",", ""
    has_comma_decimals, has_point_decimals = decimal_comma or thousands_point, decimal_point or thousands_comma
    if has_comma_decimals and has_point_decimals:
        raise FileError(
            f"{path} writes numbers in two ways: {_show(has_comma_decimals)} and {_show(has_point_decimals)}. Write them in one way, or "
            "give --decimal and --thousands."
        )
    if has_comma_decimals:
        if points and not thousands_point and form.thousands is None:
            raise FileError(
                f"{path} has decimal commas ({_show(has_comma_decimals)}), and {_show(points[0])} is open. Give --thousands '.' or "
                "correct it."
            )
        return ",", form.thousands or ("." if thousands_point else None), f" (shown by {_show(has_comma_decimals)})"
    if commas and has_point_decimals:
        return ".", form.thousands or ",", f" (shown by {_show(has_point_decimals)})"
    if commas:
        raise FileError(
            f"It is open whether {_show(commas[0])} of {path} has a decimal comma or a thousands comma, and no other cell shows it. "
            "Give --decimal ',' or --thousands ','."
        )
    if separator == ";" and points and not has_point_decimals and all(_THREE_AFTER_POINT.fullmatch(cell) for _, cell in points):
        raise FileError(
            f"It is open whether {_show(points[0])} of {path}, which has semicolons, has a decimal point or a thousands point. "
            "Give --decimal '.', or --decimal ',' --thousands '.'."
        )
    return ".", form.thousands, ""


def _show(entry: tuple[str, str]) -> str:
    return f"{entry[1]!r} in column {entry[0]!r}"


def _list_numeric_columns(rows: Sequence[Sequence[str]], thousands: str | None) -> list[tuple[str, list[str]]]:
    """Return the cells, without a known thousands mark, of each column that holds nothing but numbers, and its name."""
    found = []
    for name, *cells in zip(*rows, strict=True):
        present = [stripped for cell in cells if (stripped := cell.strip().replace(thousands or "", "")) not in MISSING]
        if present and all(_NUMBER_LIKE.fullmatch(cell) for cell in present):
            found.append((name, present))
    return found


def _rewrite_numbers(rows: list[list[str]], decimal: str, thousands: str | None, path: Path) -> None:
    """Rewrite columns of numbers with decimal points and without thousands marks, in place.

    Raises:
        FileError: A column holds numbers of another form, which pandas would read by its own rules.
    """
    whole = rf"(?:\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+|\d+)" if thousands else r"\d+"
    number = re.compile(rf"[+-]?(?:{whole}(?:{re.escape(decimal)}\d*)?|{re.escape(decimal)}\d+)(?:[eE][+-]?\d+)?")
    for place in range(len(rows[0])):
        cells = [row[place].strip() for row in rows[1:]]
        odd = [cell for cell in cells if cell not in MISSING and not number.fullmatch(cell)]
        if odd and all(cell in MISSING or _NUMBER_LIKE.fullmatch(cell) for cell in cells):
            marks = f"decimal mark {decimal!r} and {f'thousands mark {thousands!r}' if thousands else 'no thousands mark'}"
            raise FileError(
                f"{_show((rows[0][place], odd[0]))} of {path} does not fit {marks}. Give --decimal and --thousands, or correct it."
            )
        if odd:
            continue  # Text, which stays as it is.
        for row, cell in zip(rows[1:], cells, strict=True):
            if cell not in MISSING:
                row[place] = (cell.replace(thousands, "") if thousands else cell).replace(decimal, ".")


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FileError(f"Each column of {path} must have a name of its own, and {twice[0]!r} stands twice. Rename or drop one.")


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > MAX_TABLE_BYTES:
                raise _describe_size(path)
            batches, total = [], 0
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                total += batch.nbytes
                if total > MAX_TABLE_BYTES:
                    raise _describe_size(path)
                batches.append(batch)
            frame: pd.DataFrame = pa.Table.from_batches(batches, file.schema_arrow).to_pandas()
            return frame
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read as Parquet: {describe_os_error(error)}.") from error
    except (ValueError, pa.ArrowException) as error:
        raise FileError(f"{path} cannot be read as Parquet: {' '.join(str(error).split()).rstrip('.')}.") from error
    except Exception as error:
        # pandas trusts the description of its index in the file's metadata, and fails in many ways where that is damaged.
        raise FileError(
            f"{path} cannot be read as Parquet, because its pandas metadata is damaged ({type(error).__name__}: {error}). Write it again."
        ) from error
