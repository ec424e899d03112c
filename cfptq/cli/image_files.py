"""Images in an .npz file of NumPy or in a folder of image files."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfptq.errors import DataError, FileError
from cfptq.io.files import check_regular_file
from cfptq.io.suggestions import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

#: Endings of image files that a folder is searched for.
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
#: Largest array that is read, in bytes.
MAX_ARRAY_BYTES = 2**31
#: Names of the array of images in an .npz file, in the order of trial. Where there is one array alone, its name does not matter.
IMAGE_KEYS = ("images", "x", "X", "rows", "data")


@dataclass(frozen=True, eq=False)
class LoadedImages:
    """Images as rows, and how they were read.

    Attributes:
        rows: (N, ...) float32.
        labels: (N,) class of each image, or None.
        reading: sentences about the reading.
    """

    rows: Tensor
    labels: list[int] | None
    reading: str


def holds_images(path: Path) -> bool:
    """Tell whether a path names images, by being a folder or an .npz file."""
    return path.is_dir() or path.name.lower().endswith(".npz")


def load_images(path: Path, row_shape: tuple[int, ...], label: str | None) -> LoadedImages:
    """Read images of the shape that an action set speaks of.

    Args:
        path: an .npz file with an array of images, or a folder with image files, perhaps in one folder for each class.
        row_shape: shape of one row.
        label: name of the array of classes. In a folder, any name takes the classes from the folders that the images lie in.

    Raises:
        FileError: a file cannot be read.
        DataError: the images have another shape, or there are no such labels.
    """
    return _load_folder(path, row_shape, label) if path.is_dir() else _load_npz(path, row_shape, label)


def _load_npz(path: Path, row_shape: tuple[int, ...], label: str | None) -> LoadedImages:
    import numpy as np

    check_regular_file(path)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            large = [entry.filename for entry in archive.infolist() if entry.file_size > MAX_ARRAY_BYTES]
        if large:
            raise FileError(f"{path} must hold arrays of at most {MAX_ARRAY_BYTES} bytes, and {large[0]} is larger.")
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            chosen = names[0] if len(names) == 1 else next((name for name in IMAGE_KEYS if name in names), None)
            if chosen is None:
                raise DataError(
                    f"{path} must hold its images under one of {', '.join(IMAGE_KEYS)}, got {', '.join(names) or 'no arrays'}. Rename them."
                )
            arrays["rows"] = file[chosen]
            if label is not None:
                if label not in names:
                    raise DataError(f"{path} has no array {label!r}{did_you_mean(label, names)}. Its arrays are {', '.join(names)}.")
                arrays["labels"] = file[label]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise FileError(f"{path} is no .npz file of plain arrays ({error}). Write it by numpy.savez.") from error
    rows, how = _as_rows(arrays["rows"], row_shape, path)
    labels = None
    if label is not None:
        values = arrays["labels"]
        if values.shape != (len(rows),) or values.dtype.kind not in "iu":
            raise DataError(f"{label!r} in {path} must hold a whole number for each of the {len(rows)} images, got {values.shape}.")
        labels = [int(value) for value in values]
    return LoadedImages(rows, labels, f"{path.name}: {len(rows)} images from the array {chosen!r}{how}.")


def _load_folder(path: Path, row_shape: tuple[int, ...], label: str | None) -> LoadedImages:
    import numpy as np

    from cfptq.datasets.images import read_image_files

    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    direct = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in ENDINGS)
    if direct and folders:
        raise FileError(f"{path} must hold image files, or one folder for each class, and holds both.")
    files = direct or [entry for folder in folders for entry in sorted(folder.iterdir()) if entry.suffix.lower() in ENDINGS]
    if not files:
        raise FileError(f"{path} holds no image files. Their names end in {', '.join(ENDINGS)}.")
    colours = row_shape[0] if len(row_shape) == 3 and row_shape[0] in (1, 3) else None
    rows, how = _as_rows(np.asarray(read_image_files(files, None, colours)), row_shape, path)
    if label is None:
        return LoadedImages(rows, None, f"{path.name}: {len(rows)} image files in the order of their names{how}.")
    if not folders:
        raise DataError(f"{path} must hold one folder for each class to give labels. Leave --label out.")
    names = [folder.name for folder in folders]
    classes = (
        {name: int(name) for name in names} if all(name.isdecimal() for name in names) else dict(zip(names, range(len(names)), strict=True))
    )
    listed = ", ".join(f"{name} is class {place}" for name, place in classes.items())
    return LoadedImages(rows, [classes[file.parent.name] for file in files], f"{path.name}: {len(rows)} image files{how}; {listed}.")


def _as_rows(array: NDArray[Any], row_shape: tuple[int, ...], path: Path) -> tuple[Tensor, str]:
    """Return an array as rows of the wanted shape, and what was done to it in words."""
    import numpy as np
    import torch

    how = ""
    if array.dtype.kind not in "fiu":
        raise DataError(f"The images of {path} must be numbers, got {array.dtype}.")
    if array.shape[1:] != row_shape and len(row_shape) == 3:
        channels, height, width = row_shape
        if channels == 1 and array.shape[1:] == (height, width):
            array = array[:, None]
        elif array.shape[1:] == (height, width, channels):
            array, how = np.moveaxis(array, -1, 1), f"{how}, colours moved to the front"
    if array.ndim < 2 or array.shape[1:] != row_shape or len(array) == 0:
        raise DataError(f"The images of {path} must have the shape {row_shape} of the action set, got {array.shape[1:]} for one image.")
    if array.dtype == np.uint8:
        array, how = array.astype(np.float32) / 255, f"{how}, bytes divided by 255"
    elif array.dtype.kind in "iu":
        raise DataError(f"The images of {path} must be bytes (uint8) or floats, got {array.dtype}.")
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)), how
