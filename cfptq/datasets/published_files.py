"""Where the published files lie: a folder of the user's, the cache, or their publisher's server.

Nothing is believed before its SHA-256 was checked, whichever way it came, and a download that is cut off, too long, or
not the published bytes leaves nothing behind.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from cfptq.errors import FileError
from cfptq.io.atomic import atomic_write
from cfptq.io.progress import track

#: The environment variable that names the user's folder of data sets.
DATA_DIR = "CFPTQ_DATA_DIR"
#: No archive that is downloaded may be larger (bytes).
LARGEST_ARCHIVE = 32 * 2**20
#: Seconds without a byte after which a download is given up.
PATIENCE = 30.0
CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """A place on the network that holds a file: the file itself, or an archive with it inside.

    ``members`` names the way through nested zip archives, outermost first; empty where the address is the file itself.
    """

    url: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedFile:
    """One file of a data set, known by its uncompressed bytes."""

    dataset: str
    name: str
    size: int
    sha256: str
    #: Tried in order; the publisher first.
    sources: tuple[Source, ...]


def cache_dir() -> Path:
    """The folder of the user's cache that holds downloaded data sets (it need not exist yet)."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg)
    return base / "cfptq" / "data"


def search_path(data_dir: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """The folders that are searched, first to last: ``data_dir`` (else ``CFPTQ_DATA_DIR``), then the cache."""
    own = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    return ((Path(own),) if own else ()) + (cache_dir(),)


def find(file: PublishedFile, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The first copy on disk, plain or gzipped, in ``<folder>/<data set>/`` or in the folder itself; its bytes are not looked at."""
    for folder in search_path(data_dir):
        for parent in (folder / file.dataset, folder):
            for name in (file.name, f"{file.name}.gz"):
                if (parent / name).is_file():
                    return parent / name
    return None


def read(file: PublishedFile, *, data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> bytes:
    """The published bytes of ``file``, from disk, or downloaded into the cache where ``download`` allows it.

    Raises:
        FileError: it is nowhere and may not, or cannot, be downloaded; or a copy on disk does not hold the published bytes.
    """
    path = find(file, data_dir)
    if path is not None:
        return _checked(file, _uncompressed(path, file.size), str(path), f"replace it with the file from {file.sources[0].url}")
    if not download:
        raise FileError(_missing(file, data_dir))
    return fetch(file, data_dir=data_dir)


def fetch(file: PublishedFile, *, data_dir: str | os.PathLike[str] | None = None) -> bytes:
    """Download ``file`` into the cache, check its SHA-256, and return its bytes; ``data_dir`` only stands in the message.

    Raises:
        FileError: no source gave the published bytes; nothing was written. Or the folder cannot be written.
    """
    failures = []
    for source in file.sources:
        try:
            content = _extract(file, source, _download(source, file.size if not source.members else LARGEST_ARCHIVE))
            content = _checked(file, content, source.url, "the publisher may have changed it")
        except FileError as error:
            failures.append(str(error))
            continue
        folder = cache_dir() / file.dataset
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            mend = f"set {DATA_DIR} to a folder that holds {file.dataset}/{file.name}"
            raise FileError(f"cannot make the folder {folder}: {error.strerror}; {mend}") from error
        with atomic_write(folder / file.name) as aside:
            aside.write_bytes(content)
        return content
    raise FileError(f"{_missing(file, data_dir)} Downloading it failed: {'; '.join(failures)}.")


def _missing(file: PublishedFile, data_dir: str | os.PathLike[str] | None) -> str:
    searched = " nor in ".join(str(folder / file.dataset) for folder in search_path(data_dir))
    address = file.sources[0].url + (f" (inside it: {' / '.join(file.sources[0].members)})" if file.sources[0].members else "")
    return (
        f"{file.name} of the data set {file.dataset!r} is not in {searched}. "
        f"It is published at {address}, SHA-256 {file.sha256}. "
        f"Let it be downloaded (download=True), or set {DATA_DIR} to a folder that holds {file.dataset}/{file.name}, "
        f"plain or as {file.name}.gz."
    )


def _checked(file: PublishedFile, content: bytes, where: str, mend: str) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise FileError(
            f"{where} does not hold the published {file.name} of {file.dataset!r}: {len(content)} bytes with SHA-256 {digest}, "
            f"expected {file.size} bytes with {file.sha256}; {mend}"
        )
    return content


def _uncompressed(path: Path, size: int) -> bytes:
    """At most ``size`` + 1 bytes: enough to tell that a file is too long, and never a bomb."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                return packed.read(size + 1)
        with path.open("rb") as plain:
            return plain.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"cannot read {path}: {error}; replace or delete it") from error


def _download(source: Source, limit: int) -> bytes:
    request = urllib.request.Request(source.url, headers={"User-Agent": "cfptq"})
    if request.type not in ("https", "http"):
        raise FileError(f"{source.url} is not an https address")
    content = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            length = answer.headers.get("Content-Length")
            expected = int(length) if length and length.isdigit() else None
            for chunk in track(_chunks(answer), f"downloading {source.url}", total=expected // CHUNK + 1 if expected is not None else None):
                content += chunk
                if len(content) > limit:
                    raise FileError(f"{source.url} sends more than the {limit} bytes expected")
    except urllib.error.HTTPError as error:
        raise FileError(f"{source.url} answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise FileError(f"{source.url}: {error}") from error
    if expected is not None and len(content) != expected:
        raise FileError(f"{source.url} was cut off after {len(content)} of {expected} bytes")
    return bytes(content)


def _chunks(answer: io.BufferedIOBase) -> Iterator[bytes]:
    while chunk := answer.read(CHUNK):
        yield chunk


def _extract(file: PublishedFile, source: Source, content: bytes) -> bytes:
    """Follow ``members`` through nested archives, in memory: no name in an archive ever becomes a path on disk."""
    for depth, member in enumerate(source.members, start=1):
        limit = file.size if depth == len(source.members) else LARGEST_ARCHIVE
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(member) as packed:
                content = packed.read(limit + 1)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise FileError(f"{source.url} holds no readable {member}: {error}") from error
        if len(content) > limit:
            raise FileError(f"{member} in {source.url} is longer than the {limit} bytes expected")
    return content
