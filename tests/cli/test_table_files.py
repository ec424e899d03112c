"""Tables of people are read as their owner wrote them, or refused by what is wrong with the file."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pandas as pd
import pytest

from cfptq.cli.table_files import read_table
from cfptq.errors import FileError

FRAME = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]})
TEXT = b"a,b\n1.5,x\n2.5,y\n"


@pytest.mark.parametrize("name", ["rows.csv", "rows.CSV", "rows.csv.gz", "rows.parquet"])
def test_tables_are_read_by_their_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if "parquet" in name:
        FRAME.to_parquet(path)
    else:
        FRAME.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), FRAME)


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf" + TEXT, TEXT.replace(b"\n", b"\r\n"), TEXT.replace(b"x", b'"x"') + b"\n"])
def test_marks_line_ends_and_quotes_of_spreadsheets_change_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(text)
    pd.testing.assert_frame_equal(read_table(tmp_path / "rows.csv"), FRAME)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xlsx", b"", "neither CSV nor Parquet"),
        ("rows.csv", b"", "cannot be read as CSV"),
        ("rows.csv", b"a,b\n", "holds no rows"),
        ("rows.csv", b"\xff\xfe\x00\x01", "UTF-8"),
        ("rows.csv", b"a,b\n1,Orl\xe9ans\n", "UTF-8, and byte 0xe9"),
        ("rows.csv", b"a,b,a\n1,2,3\n", "'a' stands twice"),
        ("rows.csv", b"a;b\n1,5;x\n", "has semicolons"),
        ("rows.csv", b"a\tb\tc\n1\t2\t3\n", "has tabs"),
        ("rows.csv", b"a|b\n1|2\n", "has vertical bars"),
        ("rows.csv", b"a,b\n1,2\n3,4,5\n", "row 3 has 3"),
        ("rows.csv", b"a,b\n1,2\n3", "row 3 has 1"),
        ("rows.csv", b'a,b\n1,"2\n', "cannot be read as CSV"),
        # Without the time in them: the two processes that share the tests name them by their bytes.
        ("rows.csv.gz", gzip.compress(TEXT * 50, mtime=0)[:-12], "cut off"),
        ("rows.csv.gz", gzip.compress(TEXT, mtime=0)[:-6] + b"000000", "cut off or damaged"),
        ("rows.csv.gz", TEXT, "cut off or damaged"),
        ("rows.parquet", b"PAR1 cut off", "cannot be read as Parquet"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_table(tmp_path / name)


def test_a_missing_table_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="There is no file"):
        read_table(tmp_path / "absent.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(FileError, match="regular file"):
        read_table(tmp_path / "pipe.csv")
