"""Tables of people are read as their owner wrote them, or refused by what is wrong with the file."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from cfptq.cli.table_files import TableFormat, load_table, read_table
from cfptq.errors import ConfigurationError, FileError

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
        ("rows.csv", b"a;b,c\n1;2,3\n", "has commas and semicolons"),
        ("rows.csv", b'a,b\n"1,234",x\n', "open whether '1,234' in column 'a'"),
        ("rows.csv", b'a,b\n"1,234",2\n"12,345",3\n', "Give --decimal ',' or --thousands ','"),
        ("rows.csv", b"a;b\n1,234;2\n", "open whether '1,234'"),
        ("rows.csv", b"a;b\n1.234;2\n", "open whether '1.234'"),
        ("rows.csv", b"a;b\n1,5;2.5\n", "in two ways: '1,5' in column 'a' and '2.5' in column 'b'"),
        ("rows.csv", b"a;b\n1,5;1.234\n", "'1.234' in column 'b' is open"),
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


@pytest.mark.parametrize(
    ("text", "wanted", "reading"),
    [
        ("a;b\n1,5;x\n2;y\n", [1.5, 2.0], "semicolons, decimal comma, thousands without a mark, UTF-8 (shown by '1,5' in column 'a')"),
        ("a;b\n1.234,5;x\n", [1234.5], "decimal comma, thousands mark '.'"),
        ("a;b\n1.234.567;x\n", [1234567.0], "decimal comma, thousands mark '.'"),
        ("a;b\n0,123;x\n1,234;y\n", [0.123, 1.234], "decimal comma"),
        ('a,b\n"1,234.50",x\n', [1234.5], "commas, decimal point, thousands mark ','"),
        ('a,b\n"1,234,567",x\n"1,234",y\n', [1234567.0, 1234.0], "thousands mark ','"),
        ('a,b\n"1,234",0.5\n', [1234.0], "thousands mark ',', UTF-8 (shown by '0.5' in column 'b')"),
        ("a,b\n1.234,x\n", [1.234], "commas, decimal point, thousands without a mark, UTF-8."),
        ("a\tb\n1.5\tx\n", [1.5], "tabs"),
        ("a|b\n7|x\n", [7.0], "vertical bars"),
        ("a;b\n1,5;31.12.2020\n", [1.5], "decimal comma"),
    ],
)
def test_numbers_are_read_as_the_file_shows_that_they_are_written(tmp_path: Path, text: str, wanted: list[float], reading: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    table = load_table(tmp_path / "rows.csv")
    assert table.frame["a"].tolist() == wanted
    assert reading in table.reading


@pytest.mark.parametrize(
    ("text", "form", "wanted"),
    [
        ('a,b\n"1,234",x\n', TableFormat(thousands=","), 1234.0),
        ('a,b\n"1,234",x\n', TableFormat(decimal=","), 1.234),
        ("a;b\n1.234;x\n", TableFormat(decimal=",", thousands="."), 1234.0),
        ("a;b\n1.234;x\n", TableFormat(decimal="."), 1.234),
        ("a;b\n1'234,5;x\n", TableFormat(thousands="'"), 1234.5),
        ("a b\n1 x\n", TableFormat(separator=" "), 1.0),
    ],
)
def test_options_say_what_a_file_leaves_open(tmp_path: Path, text: str, form: TableFormat, wanted: float) -> None:
    (tmp_path / "rows.csv").write_text(text)
    assert load_table(tmp_path / "rows.csv", form).frame["a"].tolist() == [wanted]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("a;b\n1.234;2,5\n", TableFormat(decimal=",")),
        ("a;b\n1.5;2,5\n", TableFormat(decimal=",", thousands=".")),
        ('a,b\n"12,34",x\n', TableFormat(thousands=",")),
        ("a;b\n1.234,5;2\n12,5;3\n1.5;4\n", TableFormat(decimal=",", thousands=".")),
    ],
)
def test_numbers_of_another_form_than_the_declared_one_are_refused(tmp_path: Path, text: str, form: TableFormat) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(FileError, match="does not fit"):
        load_table(tmp_path / "rows.csv", form)


def test_another_encoding_and_keys_as_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("key,town\n007,Orléans\n".encode("latin-1"))
    frame = load_table(tmp_path / "rows.csv", TableFormat(encoding="latin-1"), text="key").frame
    assert frame.values.tolist() == [["007", "Orléans"]]


@pytest.mark.parametrize("settings", [{"separator": ";;"}, {"decimal": "x"}, {"thousands": "."}, {"encoding": "utf-99"}])
def test_forms_that_make_no_sense_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        TableFormat(**settings)


def test_tables_that_unpack_to_more_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfptq.cli.table_files.MAX_TABLE_BYTES", 100_000)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"age,income\n" + b"30,10.5\n" * 100_000))
    (tmp_path / "line.csv.gz").write_bytes(gzip.compress(b"a" * 1_000_000))
    (tmp_path / "plain.csv").write_bytes(b"age,income\n" + b"30,10.5\n" * 20_000)
    pd.DataFrame({"word": ["long" * 100] * 5_000}).to_parquet(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    for name in ("bomb.csv.gz", "line.csv.gz", "plain.csv", "bomb.parquet"):
        with pytest.raises(FileError, match="at most 100,000 bytes of people, unpacked"):
            read_table(tmp_path / name)
    monkeypatch.setattr("cfptq.cli.table_files.MAX_TABLE_CELLS", 1_000)
    (tmp_path / "many.csv").write_bytes(b"a,b\n" + b"1,2\n" * 2_000)
    with pytest.raises(FileError, match="at most 1,000 cells"):
        read_table(tmp_path / "many.csv")
    small = pd.DataFrame({"age": [30, None], "when": pd.to_datetime(["2020-01-01", None])}, index=pd.Index(["a", "b"], name="person_id"))
    small.to_parquet(tmp_path / "small.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "small.parquet"), pd.read_parquet(tmp_path / "small.parquet"))


def test_a_parquet_file_with_damaged_pandas_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    pd.DataFrame({"age": [1, 2]}).to_parquet(path)
    table = pq.read_table(path)
    damaged = json.dumps({"columns": []}).encode()
    pq.write_table(table.replace_schema_metadata({b"pandas": damaged}), path)
    with pytest.raises(FileError, match="pandas metadata is damaged"):
        read_table(path)
