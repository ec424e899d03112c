"""What is written takes the place of its own kind only, whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cfptq.errors import FileError
from cfptq.io.atomic import atomic_folder, atomic_write, clear_killed_writes, make_folder, write_text

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


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let this process write at most ``size`` bytes a file."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_file_whichever_library_writes(tmp_path: Path) -> None:
    for name, write_large in {
        "text": lambda path: path.write_bytes(b"x" * 10_000),
        "tensors": lambda path: save_file({"a": torch.zeros(10_000)}, path),
    }.items():
        write_text(tmp_path / name, "old")
        with (
            full_disk(5000),
            pytest.raises(FileError, match=rf"cannot write .*{name}: .*File too large"),
            atomic_write(tmp_path / name) as path,
        ):
            write_large(path)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["tensors", "text"]


def killed_while_writing(path: Path, then: str = "") -> None:
    """Begin a write to ``path`` in a process of its own that kills itself in its midst."""
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom cfptq.io.atomic import atomic_write\n"
        f"final = Path(sys.argv[1])\nwith atomic_write(final) as aside:\n    aside.mkdir()\n    {then}\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -signal.SIGKILL


def test_the_next_write_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    write(tmp_path / "plan")
    killed_while_writing(tmp_path / "plan")
    (tmp_path / ".plan.mine").mkdir()
    assert len(os.listdir(tmp_path)) == 3 and contents(tmp_path / "plan")
    write(tmp_path / "plan", "b")
    assert sorted(os.listdir(tmp_path)) == [".plan.mine", "plan"]


def test_a_folder_that_was_half_exchanged_is_put_back(tmp_path: Path) -> None:
    write(tmp_path / "plan")
    before = contents(tmp_path / "plan")
    killed_while_writing(tmp_path / "plan", 'final.rename(aside.parent / "retired")')
    assert not (tmp_path / "plan").exists()
    clear_killed_writes(tmp_path / "plan")
    assert contents(tmp_path / "plan") == before and os.listdir(tmp_path) == ["plan"]


def test_a_write_in_progress_is_left_alone(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as aside:
        write_text(tmp_path / "a", "other")
        aside.write_text("mine")
    assert (tmp_path / "a").read_text() == "mine" and os.listdir(tmp_path) == ["a"]


def test_folders_are_exchanged_where_the_system_cannot_do_it_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfptq.io.atomic._exchange", lambda first, second: False)
    write(tmp_path / "plan")
    write(tmp_path / "plan", "b")
    assert (tmp_path / "plan" / "parts" / "a.txt").read_text() == "b" and os.listdir(tmp_path) == ["plan"]
