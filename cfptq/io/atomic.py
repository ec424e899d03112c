"""Files that are either whole or absent: everything is written aside and renamed into place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cfptq.errors import FileError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block ends without an error.

    A crash, an exception or a full disk leaves whatever stood at ``path`` as it was. The block may write a file or make
    a folder at the temporary path; a folder replaces a folder.

    Raises:
        FileError: the parent folder does not exist or cannot be written, or ``path`` ends in no name ("." or "..").
    """
    final = Path(path)
    if final.name in ("", ".."):
        raise FileError(f"cannot write {final}: it ends in no name; give the name of a file or folder in it")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise FileError(f"cannot write {final}: {error.strerror}; give a path in a folder that exists and is writable") from error
    aside = scratch / final.name
    try:
        yield aside
        if aside.is_dir() and final.is_dir():
            retired = scratch / "retired"
            final.rename(retired)
            try:
                aside.rename(final)
            except OSError:
                retired.rename(final)
                raise
        else:
            aside.replace(final)
    except OSError as error:
        raise FileError(f"cannot write {final}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_writable(*places: Path | None) -> None:
    """Raise before the work, not after it, where a file could not be written in the end.

    Raises:
        FileError: the folder that a place lies in does not exist or takes no files.
    """
    for place in places:
        if place is not None and not (place.parent.is_dir() and os.access(place.parent, os.W_OK)):
            raise FileError(f"cannot write {place}: {place.parent} is no folder that takes files; make it first")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], files: Sequence[str], keys: Sequence[str]) -> Iterator[Path]:
    """Yield a new folder beside ``path`` to write ``files`` into; it takes the place of ``path`` as :func:`atomic_write` says.

    What stands at ``path`` may be an empty folder or an earlier one of the kind, and nothing else: other people's files are never lost.

    Args:
        path: the folder.
        files: every file that a folder of this kind may hold, relative to it. The first is a JSON object that each of them holds.
        keys: keys of that object, by which it is told from a stranger of the same name.

    Raises:
        FileError: ``path`` is a file, the working folder, or holds anything else; nothing is written. And as :func:`atomic_write`.
    """
    check_replaceable(path, files, keys)
    with atomic_write(path) as aside:
        aside.mkdir()
        yield aside


def check_replaceable(path: str | os.PathLike[str], files: Sequence[str], keys: Sequence[str]) -> None:
    """Refuse a folder that :func:`atomic_folder` would refuse; arguments and errors as there."""
    final = Path(path)
    try:
        if Path.cwd().is_relative_to(final.resolve()):
            raise FileError(f"cannot replace {final}: it is, or holds, the folder you work in; give a new folder in it, such as plan/")
        if os.path.lexists(final) and not final.is_dir():
            raise FileError(f"cannot replace {final}: it is a file; give a new or empty folder")
        others = _others(final, files, keys) if final.is_dir() else []
    except OSError as error:
        raise FileError(f"cannot read {final}: {error.strerror}; give a new folder") from error
    if others:
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise FileError(f"cannot replace {final}: it holds other files ({shown}); give a new or empty folder")


def _others(folder: Path, files: Sequence[str], keys: Sequence[str]) -> list[str]:
    """What of ``folder`` does not belong to its kind: all of it where the file that tells the kind is missing or a stranger's."""
    if not _has_keys(folder / files[0], keys):
        return sorted(entry.name for entry in folder.iterdir())
    known = {folder / file for file in files}
    places = {file.parent for file in known}
    found = [entry for place in places if place.is_dir() for entry in place.iterdir()]
    return sorted(entry.relative_to(folder).as_posix() for entry in found if entry not in (places if entry.is_dir() else known))


def _has_keys(file: Path, keys: Sequence[str]) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(key in content for key in keys)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with ``\\n`` line ends, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_bytes(text.encode("utf-8"))
