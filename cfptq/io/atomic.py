"""Atomic writes of files and folders, by a temporary path that is renamed into place."""

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
    """Yield a temporary path beside ``path`` and rename it onto ``path`` on success.

    A crash, an exception or a full disk leaves ``path`` as it was. The block may write a file or make a folder at the temporary
    path. A folder replaces a folder.

    Args:
        path: the file or folder to write.

    Raises:
        FileError: the parent folder does not exist or cannot be written, or ``path`` does not end in a name ("." or "..").
    """
    final = Path(path)
    if final.name in ("", ".."):
        raise FileError(f"Cannot write {final}: the path must end in a name. Give the name of a file or folder in it.")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise FileError(f"Cannot write {final}: {error.strerror}. Give a path in a folder that exists and is writable.") from error
    temporary = scratch / final.name
    try:
        yield temporary
        if temporary.is_dir() and final.is_dir():
            retired = scratch / "retired"
            final.rename(retired)
            try:
                temporary.rename(final)
            except OSError:
                retired.rename(final)
                raise
        else:
            temporary.replace(final)
    except OSError as error:
        raise FileError(f"Cannot write {final}: {error.strerror}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder, with its parents, if it is missing, and return its path.

    Args:
        path: the folder.

    Raises:
        FileError: ``path`` is a file, or the folder cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"Cannot make the folder {folder}: {error.strerror}. Give a path that may be a new folder.") from error
    return folder


def check_writable(*paths: Path | None) -> None:
    """Check before the work that its results can be written afterwards.

    Args:
        paths: files to be written; None is skipped.

    Raises:
        FileError: the folder of a path does not exist or is not writable.
    """
    for path in paths:
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise FileError(f"Cannot write {path}: {path.parent} is not a writable folder. Make it first.")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], files: Sequence[str], keys: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` and rename it onto ``path`` on success, as :func:`atomic_write` does.

    Only an empty folder or an earlier folder of the same kind is replaced, so that no other files are lost.

    Args:
        path: the folder to write.
        files: every file that a folder of this kind may hold, relative to it. The first one is a JSON object and always present.
        keys: keys of that object. A file of the same name without these keys belongs to something else.

    Raises:
        FileError: ``path`` is a file, is or holds the working folder, holds other files, or cannot be written.
            Nothing is written then.
    """
    check_replaceable(path, files, keys)
    with atomic_write(path) as temporary:
        temporary.mkdir()
        yield temporary


def check_replaceable(path: str | os.PathLike[str], files: Sequence[str], keys: Sequence[str]) -> None:
    """Check that :func:`atomic_folder` may replace the folder at ``path``.

    Args:
        path: the folder to write.
        files: every file that a folder of this kind may hold, relative to it. The first one is a JSON object and always present.
        keys: keys of that object.

    Raises:
        FileError: ``path`` is a file, is or holds the working folder, holds other files, or cannot be read.
    """
    final = Path(path)
    try:
        if Path.cwd().is_relative_to(final.resolve()):
            raise FileError(f"Cannot replace {final}: it is or holds the working folder. Give a new folder in it, such as plan/.")
        if os.path.lexists(final) and not final.is_dir():
            raise FileError(f"Cannot replace {final}: it is a file. Give a new or empty folder.")
        others = _list_other_files(final, files, keys) if final.is_dir() else []
    except OSError as error:
        raise FileError(f"Cannot read {final}: {error.strerror}. Give a new folder.") from error
    if others:
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise FileError(f"Cannot replace {final}: it holds other files ({shown}). Give a new or empty folder.")


def _list_other_files(folder: Path, files: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the names of the entries that do not belong to a folder of this kind.

    These are all entries if the first of ``files`` is missing or lacks ``keys``.
    """
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
    """Write ``text`` atomically as UTF-8 with ``\\n`` line ends."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
