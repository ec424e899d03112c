"""Public data sets of the benchmarks, and a synthetic one that the package generates.

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
from cfptq.datasets.encoding import Columns, ColumnsDescription, encode, fit_encoder
from cfptq.datasets.published_files import PublishedFile, Source, find_file, get_cache_folder, list_search_folders, read_file
from cfptq.errors import DataError

__all__ = [
    "NAMES", "Columns", "ColumnsDescription", "Dataset", "PublishedFile", "Source", "download", "encode", "fit_encoder", "get_cache_folder",
    "list_files", "list_search_folders", "load", "locate",
]  # fmt: skip


@dataclass(frozen=True)
class _PublishedDataset:
    """A public data set, given by its files and by the function that builds it from their bytes and a seed."""

    files: tuple[PublishedFile, ...]
    build: Callable[[Mapping[str, bytes], int], Dataset]


_PUBLISHED = {
    "adult": _PublishedDataset(adult.FILES, adult.build),
    "german": _PublishedDataset(german.FILES, german.build),
    "compas": _PublishedDataset(compas.FILES, compas.build),
    "bank": _PublishedDataset(bank.FILES, bank.build),
    "bank-with-duration": _PublishedDataset(bank.FILES, bank.build_with_duration),
    "default": _PublishedDataset(default.FILES, default.build),
}
_SYNTHETIC = "synthetic"

#: Names that ``load`` accepts. "synthetic" needs no file.
NAMES: tuple[str, ...] = (*_PUBLISHED, _SYNTHETIC)


def load(name: str, *, seed: int = 0, data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
    """Load a data set by one of ``NAMES``.

    Args:
        name: name of the data set.
        seed: seed of the split of german (700 / 300) and of the people of synthetic. The other sets have one split. Default: 0.
        data_dir: folder with ``<data set>/<file>``, plain or gzipped. Default: the environment variable ``CFPTQ_DATA_DIR``.
            The cache is searched next, and then the publisher's server.
        download: whether to download a missing file into the cache. Default: True.

    Returns:
        The data set. The same files and seed give the same rows with the same version of NumPy.

    Raises:
        DataError: the name is unknown.
        FileError: a file is missing, cannot be downloaded, or does not hold the published bytes, which SHA-256 checks.
    """
    if name == _SYNTHETIC:
        return synthetic.build(seed)
    contents = {file.name: read_file(file, data_dir=data_dir, download=download) for file in list_files(name)}
    return _PUBLISHED[name].build(contents, seed)


def list_files(name: str) -> tuple[PublishedFile, ...]:
    """List the published files of a data set. "synthetic" has none.

    Raises:
        DataError: the name is unknown.
    """
    if name == _SYNTHETIC:
        return ()
    if name not in _PUBLISHED:
        raise DataError(f"The data set must be one of {', '.join(NAMES)}, got {name!r}.")
    return _PUBLISHED[name].files


def locate(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Path | None]:
    """Return the path of each file of a data set, or ``None`` for a file that is not on disk.

    Args:
        name: name of the data set.
        data_dir: folder that is searched before the cache. Default: the environment variable ``CFPTQ_DATA_DIR``.

    Raises:
        DataError: the name is unknown.
    """
    return {file.name: find_file(file, data_dir) for file in list_files(name)}


def download(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Download the missing files of a data set into the cache, and check the SHA-256 of all files.

    Args:
        name: name of the data set.
        data_dir: folder that is searched before the cache. Default: the environment variable ``CFPTQ_DATA_DIR``.

    Raises:
        DataError: the name is unknown.
        FileError: no source gives the published bytes, or a copy on disk does not hold them. Nothing is written then.
    """
    for file in list_files(name):
        read_file(file, data_dir=data_dir)
