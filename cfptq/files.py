"""Files that are either whole or absent: everything is written aside and renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfptq.errors import FileError


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block ends without an error.

    A crash, an exception or a full disk leaves whatever stood at ``path`` as it was. The block may write a file or make
    a folder at the temporary path; a folder replaces a folder.

    Raises:
        FileError: the parent folder does not exist or cannot be written.
    """
    final = Path(path)
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


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with ``\\n`` line ends, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8"))
