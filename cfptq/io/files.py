"""Reads of regular files of a bounded size."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from cfptq.errors import FileError

MAX_TEXT_BYTES = 2**26  # Larger JSON and YAML files are refused.
MAX_DEPTH = 50  # Deeper JSON files are refused. Those that cfptq writes have at most ten levels.


def as_path(value: object, name: str = "path") -> Path:
    """Return ``value`` as a path.

    Args:
        value: what was given.
        name: name of the argument in messages.

    Raises:
        FileError: it is neither text nor a path, or holds a null character.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise FileError(f"{name} must be the path of a file or folder, as text or a pathlib.Path, got {value!r}.")
    path = Path(value)
    if "\0" in str(path):
        raise FileError(f"{name} must be a path without null characters, got {str(path)!r}.")
    return path


def check_regular_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> Path:
    """Check that ``path`` is a regular file of at most ``max_bytes``, or a link to one. Nothing is read.

    Raises:
        FileError: there is no such file, it is a folder, a device or a pipe, or it is larger.
    """
    source = as_path(path)
    try:
        state = source.stat()
    except FileNotFoundError:
        raise FileError(f"There is no file {source}.") from None
    except OSError as error:
        raise FileError(f"This process cannot read {source}: {describe_os_error(error)}.") from error
    if not stat.S_ISREG(state.st_mode):
        raise FileError(f"{source} must be a regular file, and it is a folder, a device or a pipe.")
    if max_bytes is not None and state.st_size > max_bytes:
        raise FileError(f"{source} must have at most {max_bytes} bytes, got {state.st_size}.")
    return source


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a regular file of at most ``max_bytes``.

    Raises:
        FileError: there is no such file, it is no regular file, it is larger, or it cannot be read.
    """
    source = check_regular_file(path, max_bytes)
    try:
        with source.open("rb") as file:
            # No more is read than the size that was checked, even if the file grows meanwhile.
            return file.read(min(os.fstat(file.fileno()).st_size, max_bytes))
    except (OSError, MemoryError) as error:
        raise FileError(f"This process cannot read {source}: {describe_os_error(error)}.") from error


def compute_file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a regular file in hexadecimal.

    Raises:
        FileError: there is no such file, it is no regular file, or it cannot be read.
    """
    source = check_regular_file(path)
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"This process cannot read {source}: {describe_os_error(error)}.") from error


def read_text(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a regular file of at most ``max_bytes`` as UTF-8, with or without a byte order mark.

    Raises:
        FileError: it is no such file, or no UTF-8 text.
    """
    try:
        return read_file(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not text in UTF-8. Its byte {error.start} is another encoding's. Save it as UTF-8.") from error


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Read the JSON object in a regular file of at most ``max_bytes``.

    Raises:
        FileError: it is no such file, or holds no JSON object.
    """
    content = read_file(path, max_bytes)
    try:
        value = json.loads(content)
    except RecursionError:
        is_deep = True
    except ValueError as error:
        raise FileError(f"{path} is not valid JSON ({error}).") from error
    else:
        is_deep = _is_deeper(value, MAX_DEPTH)
    if is_deep:
        raise FileError(f"{path} is nested in more than {MAX_DEPTH} levels, and is none of cfptq's files.")
    if not isinstance(value, dict):
        raise FileError(f"{path} must hold a JSON object, got a {type(value).__name__}.")
    return value


def _is_deeper(value: object, most: int) -> bool:
    """Return whether lists and objects of a JSON value are nested in more than ``most`` levels."""
    level = [value]
    for _ in range(most + 1):
        nested = [inner for inner in level if isinstance(inner, list | dict) and inner]
        if not nested:
            return False
        level = [part for inner in nested for part in (inner.values() if isinstance(inner, dict) else inner)]
    return True


def describe_os_error(error: BaseException) -> str:
    """Return the reason that an operating system gave, without its path."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(reason).rstrip(".")
