"""Atomic writes of files and folders, by a temporary path that is renamed into place.

A process that is killed leaves its temporary folder behind, hidden beside the path that it was writing. The next write to the same path
removes it. A lock that the system drops with the process tells folders in use from those left behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from cfptq.errors import FileError
from cfptq.io.files import as_path, check_regular_file, describe_os_error

if sys.platform != "win32":
    import fcntl

#: Ending of temporary folders, so that nobody else's hidden folder is taken for one.
_SUFFIX = ".cfptq"
#: Name that an earlier folder has in the temporary folder while another takes its place.
_RETIRED = "retired"
#: Flag of Linux's renameat2 that exchanges two paths in one step, and the number for paths relative to the working folder.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
MAX_HEAD_BYTES = 2**26  # A larger file is not taken for the description of an earlier folder.


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it onto ``path`` on success.

    A crash, an exception or a full disk leaves ``path`` as it was. The block may write a file or make a folder at the temporary
    path. A folder replaces a folder.

    Args:
        path: the file or folder to write.

    Raises:
        FileError: the parent folder does not exist or cannot be written, the disk is full, or ``path`` does not end in a name ("." or
            "..").
    """
    final = as_path(path)
    if final.name in ("", ".."):
        raise FileError(f"This process cannot write {final}: the path must end in a name. Give the name of a file or folder in it.")
    with ExitStack() as stack:
        try:
            clear_killed_writes(final)
            scratch = stack.enter_context(_open_scratch_folder(final))
        except OSError as error:
            raise FileError(
                f"This process cannot write {final}: {describe_os_error(error)}. Give a path in a folder that exists and is writable."
            ) from error
        temporary = scratch / final.name
        try:
            yield temporary
            _put_in_place(temporary, final, scratch / _RETIRED)
        except (OSError, SafetensorError) as error:
            raise FileError(f"This process cannot write {final}: {describe_os_error(error)}. Free space, or give another path.") from error


def _put_in_place(temporary: Path, final: Path, retired: Path) -> None:
    """Rename ``temporary`` onto ``final``. An earlier folder is exchanged in one step where the system can."""
    if not (temporary.is_dir() and final.is_dir()):
        temporary.replace(final)
        return
    if _exchange(temporary, final):
        return
    final.rename(retired)
    try:
        temporary.rename(final)
    except OSError:
        retired.rename(final)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step, and return False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


@contextmanager
def _open_scratch_folder(final: Path) -> Iterator[Path]:
    """Make a locked, hidden folder beside ``final``, and remove it on exit."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=_SUFFIX, dir=final.parent))
        with suppress(BlockingIOError):  # Another process may have taken it for one left behind before it was locked.
            lock = _lock(scratch)
            if scratch.is_dir():
                break
            _unlock(lock)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _unlock(lock)


def clear_killed_writes(path: str | os.PathLike[str]) -> None:
    """Remove the temporary folders that killed processes left beside ``path``.

    Where a process was killed between the two steps in which one folder takes another's place, the earlier folder is put back.

    Args:
        path: the file or folder that they were writing.
    """
    final = as_path(path)
    if sys.platform == "win32":
        return
    with suppress(OSError):
        for scratch in _list_scratch_folders(final):
            try:
                lock = _lock(scratch)
            except BlockingIOError:
                continue
            if lock is None:
                continue
            try:
                if (scratch / _RETIRED).is_dir() and not os.path.lexists(final):
                    (scratch / _RETIRED).rename(final)
                shutil.rmtree(scratch, ignore_errors=True)
            finally:
                _unlock(lock)


def _list_scratch_folders(final: Path) -> list[Path]:
    """Return this user's temporary folders for ``final``, of running and of killed processes."""
    found = []
    with os.scandir(final.parent) as entries:
        for entry in entries:
            middle = entry.name.removeprefix(f".{final.name}.").removesuffix(_SUFFIX)
            if entry.name != f".{final.name}.{middle}{_SUFFIX}" or not middle or "." in middle:
                continue
            state = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid():
                found.append(Path(entry.path))
    return found


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives, and return what unlocks it, or None where the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder, with its parents, if it is missing, and return its path.

    Args:
        path: the folder.

    Raises:
        FileError: ``path`` is a file, or the folder cannot be made.
    """
    folder = as_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = describe_os_error(error)
        raise FileError(f"This process cannot make the folder {folder}: {reason}. Give a path that may be a new folder.") from error
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
            raise FileError(f"This process cannot write {path}: {path.parent} is not a writable folder. Make it first.")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], files: Sequence[str], keys: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` and rename it onto ``path`` on success, as ``atomic_write`` does.

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
    """Check that ``atomic_folder`` may replace the folder at ``path``.

    Args:
        path: the folder to write.
        files: every file that a folder of this kind may hold, relative to it. The first one is a JSON object and always present.
        keys: keys of that object.

    Raises:
        FileError: ``path`` is a file, is or holds the working folder, holds other files, or cannot be read.
    """
    final = as_path(path)
    clear_killed_writes(final)
    try:
        if Path.cwd().is_relative_to(final.resolve()):
            raise FileError(f"Cannot replace {final}: it is or holds the working folder. Give a new folder in it, such as plan/.")
        if os.path.lexists(final) and not final.is_dir():
            raise FileError(f"Cannot replace {final}: it is a file. Give a new or empty folder.")
        others = _list_other_files(final, files, keys) if final.is_dir() else []
    except OSError as error:
        raise FileError(f"This process cannot read {final}: {describe_os_error(error)}. Give a new folder.") from error
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
        content = json.loads(check_regular_file(file, MAX_HEAD_BYTES).read_bytes())
    except (FileError, OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(key in content for key in keys)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` atomically as UTF-8 with ``\\n`` line ends."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
