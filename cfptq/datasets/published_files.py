"""Published files of data sets, read from the user's folder or the cache, or downloaded from their publisher.

The SHA-256 of every file is checked before use. A download that is truncated, too long or not the published bytes leaves no file.
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

#: Environment variable that names the user's folder of data sets.
DATA_DIR_VARIABLE = "CFPTQ_DATA_DIR"
#: A download of a larger archive is stopped with an error.
MAX_ARCHIVE_BYTES = 32 * 2**20
#: A download that receives no byte for longer is stopped with an error.
TIMEOUT_SECONDS = 30.0
#: A download is read in pieces of this size.
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """An address that serves a file, or a zip archive that contains it.

    Attributes:
        url: the address.
        members: names in nested archives, outermost first. Default: none, the address serves the file itself.
    """

    url: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedFile:
    """One file of a data set, identified by the digest of its uncompressed bytes.

    Attributes:
        dataset: name of the folder that holds the file.
        name: file name.
        size: size in bytes.
        sha256: SHA-256 in hexadecimal.
        sources: addresses in the order in which they are tried, the publisher's first.
    """

    dataset: str
    name: str
    size: int
    sha256: str
    sources: tuple[Source, ...]


def get_cache_folder() -> Path:
    """Return the folder of the user's cache that holds downloaded data sets. It may not exist yet."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg)
    return base / "cfptq" / "data"


def list_search_folders(data_dir: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """List the folders that are searched, ``data_dir`` or else ``CFPTQ_DATA_DIR``, and then the cache."""
    chosen = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE)
    return ((Path(chosen),) if chosen else ()) + (get_cache_folder(),)


def find_file(file: PublishedFile, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the path of the first copy on disk without reading it, or ``None``.

    A copy is plain or gzipped, and lies in ``<folder>/<data set>/`` or in a searched folder itself.
    """
    for folder in list_search_folders(data_dir):
        for parent in (folder / file.dataset, folder):
            for name in (file.name, f"{file.name}.gz"):
                if (parent / name).is_file():
                    return parent / name
    return None


def read_file(file: PublishedFile, *, data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> bytes:
    """Return the published bytes of a file.

    Args:
        file: the file.
        data_dir: folder that is searched before the cache. Default: the environment variable ``CFPTQ_DATA_DIR``.
        download: whether to download a missing file into the cache. Default: True.

    Raises:
        FileError: the file is missing and not downloaded, or a copy on disk does not hold the published bytes.
    """
    path = find_file(file, data_dir)
    if path is not None:
        return _require_digest(
            file, _read_uncompressed(path, file.size), str(path), f"Replace it with the file from {file.sources[0].url}."
        )
    if not download:
        raise FileError(_describe_missing(file, data_dir))
    return download_file(file, data_dir=data_dir)


def download_file(file: PublishedFile, *, data_dir: str | os.PathLike[str] | None = None) -> bytes:
    """Download a file into the cache, check its SHA-256 and return its bytes.

    Args:
        file: the file.
        data_dir: folder that was searched before, for the error message.

    Raises:
        FileError: no source gives the published bytes, or the cache cannot be written. No file is written then.
    """
    failures = []
    for source in file.sources:
        try:
            content = _extract(file, source, _download(source, file.size if not source.members else MAX_ARCHIVE_BYTES))
            content = _require_digest(file, content, source.url, "The publisher may have changed it.")
        except FileError as error:
            failures.append(str(error))
            continue
        folder = get_cache_folder() / file.dataset
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            advice = f"Set {DATA_DIR_VARIABLE} to a folder that holds {file.dataset}/{file.name}."
            raise FileError(f"Cannot create the folder {folder}: {error.strerror}. {advice}") from error
        with atomic_write(folder / file.name) as temporary:
            temporary.write_bytes(content)
        return content
    raise FileError(f"{_describe_missing(file, data_dir)} The download failed. {' '.join(failures)}")


def _describe_missing(file: PublishedFile, data_dir: str | os.PathLike[str] | None) -> str:
    searched = " nor in ".join(str(folder / file.dataset) for folder in list_search_folders(data_dir))
    address = file.sources[0].url + (f" (inside it: {' / '.join(file.sources[0].members)})" if file.sources[0].members else "")
    return (
        f"{file.name} of the data set {file.dataset!r} is not in {searched}. "
        f"It is published at {address}, SHA-256 {file.sha256}. "
        f"Let it be downloaded (download=True), or set {DATA_DIR_VARIABLE} to a folder that holds {file.dataset}/{file.name}, "
        f"plain or as {file.name}.gz."
    )


def _require_digest(file: PublishedFile, content: bytes, label: str, advice: str) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise FileError(
            f"{label} must hold the published {file.name} of {file.dataset!r}, {file.size} bytes with SHA-256 {file.sha256}, "
            f"got {len(content)} bytes with {digest}. {advice}"
        )
    return content


def _read_uncompressed(path: Path, size: int) -> bytes:
    """Read at most ``size`` + 1 bytes, which is enough to tell that a file is too long."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                return packed.read(size + 1)
        with path.open("rb") as plain:
            return plain.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"Cannot read {path}: {error}. Replace or delete it.") from error


def _download(source: Source, limit: int) -> bytes:
    request = urllib.request.Request(source.url, headers={"User-Agent": "cfptq"})
    if request.type not in ("https", "http"):
        raise FileError(f"The address of a download must begin with https, got {source.url}.")
    content = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            length = answer.headers.get("Content-Length")
            expected = int(length) if length and length.isdigit() else None
            for chunk in track(
                _read_chunks(answer), f"downloading {source.url}", total=expected // CHUNK_BYTES + 1 if expected is not None else None
            ):
                content += chunk
                if len(content) > limit:
                    raise FileError(f"{source.url} sends more than the {limit} bytes expected.")
    except urllib.error.HTTPError as error:
        raise FileError(f"{source.url} answers {error.code} {error.reason}.") from error
    except (OSError, HTTPException) as error:
        raise FileError(f"{source.url} cannot be read: {error}.") from error
    if expected is not None and len(content) != expected:
        raise FileError(f"{source.url} was cut off after {len(content)} of {expected} bytes.")
    return bytes(content)


def _read_chunks(answer: io.BufferedIOBase) -> Iterator[bytes]:
    while chunk := answer.read(CHUNK_BYTES):
        yield chunk


def _extract(file: PublishedFile, source: Source, content: bytes) -> bytes:
    """Extract a file from nested archives in memory, so that no name in an archive becomes a path on disk."""
    for depth, member in enumerate(source.members, start=1):
        limit = file.size if depth == len(source.members) else MAX_ARCHIVE_BYTES
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(member) as packed:
                content = packed.read(limit + 1)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise FileError(f"{source.url} holds no readable {member}: {error}.") from error
        if len(content) > limit:
            raise FileError(f"{member} in {source.url} is longer than the {limit} bytes expected.")
    return content
