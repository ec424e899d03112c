"""Files are read only where they are regular and small enough to be what they should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfptq.errors import FileError
from cfptq.io.files import read_file, read_json, read_text


def test_devices_pipes_folders_and_links_to_them_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(FileError, match="must be a regular file"):
            read_file(path, 10)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match="at most 100 bytes, got 1099511627776"):
        read_file(tmp_path / "large", 100)


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "a") == "a"
    (tmp_path / "a").write_bytes(b"ab\xe9")
    with pytest.raises(FileError, match="byte 2"):
        read_text(tmp_path / "a")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[1]", "3", "", "{", "\0"])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(FileError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_file_that_is_not_there_or_no_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"There is no file .*absent"):
        read_file(tmp_path / "absent", 10)
    with pytest.raises(FileError, match="path must be the path of a file or folder"):
        read_file(None, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [60, 900, 100_000])
def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    (tmp_path / "a").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(FileError, match="nested in more than 50 levels"):
        read_json(tmp_path / "a")
