"""The public data sets of the benchmarks, and one that the package generates.

>>> people = load("synthetic")
>>> people.train.shape
(3000, 11)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cfptq.datasets import adult, bank, compas, default, german, synthetic
from cfptq.datasets.dataset import Dataset
from cfptq.datasets.encoding import Columns, encode, encoder
from cfptq.datasets.published_files import PublishedFile, Source, cache_dir, find, read, search_path
from cfptq.errors import DataError

__all__ = [
    "NAMES", "Columns", "Dataset", "PublishedFile", "Source", "cache_dir", "download", "encode", "encoder", "files_of", "load", "locate",
    "search_path",
]  # fmt: skip


@dataclass(frozen=True)
class _Published:
    files: tuple[PublishedFile, ...]
    build: Callable[[Mapping[str, bytes], int], Dataset]


_PUBLISHED = {
    "adult": _Published(adult.FILES, adult.build),
    "german": _Published(german.FILES, german.build),
    "compas": _Published(compas.FILES, compas.build),
    "bank": _Published(bank.FILES, bank.build),
    "bank-with-duration": _Published(bank.FILES, bank.build_with_duration),
    "default": _Published(default.FILES, default.build),
}
_SYNTHETIC = "synthetic"

#: What :func:`load` knows. "synthetic" needs no file.
NAMES: tuple[str, ...] = (*_PUBLISHED, _SYNTHETIC)


def load(name: str, *, seed: int = 0, data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
    """Load a data set by one of :data:`NAMES`.

    Args:
        name: which.
        seed: which split of german (700 / 300), and which people of synthetic. The other sets have one split for all seeds.
        data_dir: folder with ``<data set>/<file>``, plain or gzipped; by default ``CFPTQ_DATA_DIR``. The cache is looked
            at next, and then the publisher's server.
        download: whether a file that is on no disk may be downloaded into the cache.

    Raises:
        DataError: an unknown name.
        FileError: a file is missing, cannot be downloaded, or does not hold the published bytes (each is checked by SHA-256).
    """
    if name == _SYNTHETIC:
        return synthetic.build(seed)
    contents = {file.name: read(file, data_dir=data_dir, download=download) for file in files_of(name)}
    return _PUBLISHED[name].build(contents, seed)


def files_of(name: str) -> tuple[PublishedFile, ...]:
    """The published files that a data set is made of; none for "synthetic".

    Raises:
        DataError: an unknown name.
    """
    if name == _SYNTHETIC:
        return ()
    if name not in _PUBLISHED:
        raise DataError(f"there is no data set {name!r}; cfptq has {', '.join(NAMES)}")
    return _PUBLISHED[name].files


def locate(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Path | None]:
    """Where each file of a data set lies on disk; None for one that would have to be downloaded."""
    return {file.name: find(file, data_dir) for file in files_of(name)}


def download(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Download those files of a data set that are on no disk into the cache; check the SHA-256 of all.

    Raises:
        DataError: an unknown name.
        FileError: no source gave the published bytes (nothing was written), or a copy on disk does not hold them.
    """
    for file in files_of(name):
        read(file, data_dir=data_dir)
