"""What is written takes the place of its own kind only, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cfptq.errors import FileError
from cfptq.io.atomic import atomic_folder, make_folder, write_text

FILES = ("note.json", "parts/a.txt")


def write(folder: str | Path, content: str = "a") -> None:
    with atomic_folder(folder, FILES, ("kind",)) as aside:
        (aside / "note.json").write_text('{"kind": 1}')
        (aside / "parts").mkdir()
        (aside / "parts" / "a.txt").write_text(content)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_new_an_empty_and_an_earlier_folder_are_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    write(tmp_path / "new")
    assert contents(tmp_path / "new") == contents(tmp_path / "empty")
    write(tmp_path / "new", "b")
    assert (tmp_path / "new" / "parts" / "a.txt").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def stranger(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: stranger(folder, "thesis.txt"), r"\(thesis.txt\)"),
        (lambda folder: stranger(folder, "parts/thesis.txt"), r"\(parts/thesis.txt\)"),
        (lambda folder: stranger(folder, "drafts/thesis.txt"), r"\(drafts\)"),
        (lambda folder: (folder / "drafts").mkdir(), r"\(drafts\)"),
        (lambda folder: stranger(folder, "d", "c", "b", "a"), r"\(a, b, c, …\)"),
        (lambda folder: (folder / "note.json").unlink(), r"\(parts\)"),
        (lambda folder: (folder / "note.json").write_text('{"mine": 1}'), r"\(note.json, parts\)"),
        (lambda folder: (folder / "note.json").write_text("[1]"), r"\(note.json, parts\)"),
        (lambda folder: (folder / "note.json").write_bytes(b"\xff"), r"\(note.json, parts\)"),
    ],
)
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path, spoil: Callable[[Path], object], named: str) -> None:
    write(tmp_path / "folder")
    spoil(tmp_path / "folder")
    before = contents(tmp_path)
    with pytest.raises(FileError, match=f"it holds other files {named}. Give a new or empty folder"):
        write(tmp_path / "folder", "b")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", [".", "..", "", "../work", "absolute"])
def test_the_working_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(FileError, match=r"the working folder\. Give a new folder in it"):
        write(tmp_path / "work" if place == "absolute" else place)
    assert contents(tmp_path) == {"work": None}


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match=r"thesis.txt: it is a file. Give a new or empty folder"):
        write(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "..", "folder/.."])
def test_a_file_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=r"the path must end in a name\. Give the name of a file"):
        write_text(place, "text")
    assert contents(tmp_path) == {"folder": None}


def test_a_folder_is_made_or_refused(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot make the folder"):
        make_folder(tmp_path / "file")
