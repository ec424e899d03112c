"""Public data sets of images, MNIST, Fashion-MNIST and CelebA, read from the user's folder. Nothing is downloaded."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.datasets.published_files import PublishedFile, Source, find_file, list_search_folders, read_file
from cfptq.errors import DataError, FileError, MissingDependencyError

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"

#: Data set -> address, and size and SHA-256 of each file without compression.
_IDX: dict[str, tuple[str, dict[str, tuple[int, str]]]] = {
    "mnist": (_MNIST, {
        f"train-{_IMAGES}": (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        f"train-{_LABELS}": (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        f"t10k-{_IMAGES}": (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        f"t10k-{_LABELS}": (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    }),
    "fashion-mnist": (_FASHION, {
        f"train-{_IMAGES}": (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        f"train-{_LABELS}": (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        f"t10k-{_IMAGES}": (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        f"t10k-{_LABELS}": (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    }),
}  # fmt: skip

_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
}

#: Names that ``load_images`` accepts.
IMAGE_NAMES: tuple[str, ...] = tuple(_IDX)

#: CelebA's table of attributes.
CELEBA_FILE = PublishedFile(
    "celeba", "list_attr_celeba.txt", 26_721_026, "f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0",
    (Source("https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"),),
)  # fmt: skip
#: Folder of CelebA's images, beside the table.
CELEBA_IMAGES = "img_align_celeba"
#: Magic number of IDX files of bytes, plus the number of dimensions.
_IDX_BYTES = 2048


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images, split into training and test images.

    Attributes:
        name: name of the data set.
        train: (N, channels, height, width) uint8.
        train_labels: class of each training image, (N,) int64.
        test: test images, as ``train``.
        test_labels: class of each test image, (N,) int64.
        label_names: names of the classes.
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    label_names: tuple[str, ...]

    def choose_classes(self, classes: Sequence[int]) -> ImageDataset:
        """Return the images of some classes alone. Their labels are places in ``classes``.

        Raises:
            DataError: there are fewer than two classes, or one that does not exist or stands there twice.
        """
        if len(classes) < 2 or len(set(classes)) < len(classes) or any(not 0 <= c < len(self.label_names) for c in classes):
            raise DataError(f"classes must be two or more different classes from 0 to {len(self.label_names) - 1}, got {list(classes)}.")
        place = torch.full((len(self.label_names),), -1)
        place[list(classes)] = torch.arange(len(classes))
        kept = [place[labels] >= 0 for labels in (self.train_labels, self.test_labels)]
        return ImageDataset(
            self.name, self.train[kept[0]], place[self.train_labels[kept[0]]], self.test[kept[1]], place[self.test_labels[kept[1]]],
            tuple(self.label_names[c] for c in classes),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class AttributeTable:
    """CelebA's attributes.

    Attributes:
        names: names of the attributes.
        files: file name of each image.
        values: 1 where an image has an attribute and 0 where it has not, (N, attributes) uint8.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    values: NDArray[np.uint8]


def as_rows(images: Tensor) -> Tensor:
    """Return images of bytes as float32 rows between 0 and 1."""
    return images.to(torch.float32) / 255


def load_images(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> ImageDataset:
    """Load MNIST or Fashion-MNIST from its four IDX files, plain or gzipped.

    Args:
        name: one of ``IMAGE_NAMES``.
        data_dir: folder with ``<data set>/<file>``. Default: the environment variable ``CFPTQ_DATA_DIR``, and then the cache.

    Raises:
        DataError: the name is unknown.
        FileError: a file is missing, or does not hold the published bytes, which SHA-256 checks.
    """
    if name not in _IDX:
        raise DataError(f"The images must be those of {' or '.join(IMAGE_NAMES)}, got {name!r}.")
    address, files = _IDX[name]
    arrays = [
        parse_idx(
            read_file(PublishedFile(name, file, size, digest, (Source(f"{address}{file}.gz"),)), data_dir=data_dir, download=False), file
        )
        for file, (size, digest) in files.items()
    ]
    train, train_labels, test, test_labels = (torch.from_numpy(array.copy()) for array in arrays)
    return ImageDataset(name, train[:, None], train_labels.long(), test[:, None], test_labels.long(), _NAMES[name])


def parse_idx(content: bytes, where: str) -> NDArray[np.uint8]:
    """Parse an IDX file of bytes, such as MNIST's.

    Args:
        content: the file, without compression.
        where: the file's name, for messages.

    Raises:
        FileError: it is no IDX file of bytes, or has another length than its header says.
    """
    magic = int.from_bytes(content[:4], "big")
    dimensions = magic - _IDX_BYTES
    if len(content) < 4 or not 1 <= dimensions <= 4 or len(content) < 4 + 4 * dimensions:
        raise FileError(f"{where} must be an IDX file of bytes, whose first bytes are 0, 0, 8 and the number of dimensions.")
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    body = content[4 + 4 * dimensions :]
    expected = int(np.prod(shape, dtype=object))
    if len(body) != expected:
        raise FileError(f"{where} must hold {expected} values, as its header says, got {len(body)}. It may be cut off.")
    return np.frombuffer(body, np.uint8).reshape(shape)


def load_celeba_attributes(data_dir: str | os.PathLike[str] | None = None) -> AttributeTable:
    """Load CelebA's attributes of 202,599 images, whose licence allows research only.

    Args:
        data_dir: folder with ``celeba/list_attr_celeba.txt``. Default: the environment variable ``CFPTQ_DATA_DIR``, and then the cache.

    Raises:
        FileError: the file is missing, or does not hold the published bytes.
    """
    return parse_attributes(read_file(CELEBA_FILE, data_dir=data_dir, download=False).decode("utf-8"), CELEBA_FILE.name)


def parse_attributes(text: str, where: str) -> AttributeTable:
    """Parse a table in the layout of CelebA's, the number of images, the names, and a line of 1 and -1 for each image.

    Raises:
        FileError: the text has another layout.
    """
    lines = text.splitlines()
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if len(lines) < 3 or not lines[0].strip().isdecimal() or int(lines[0]) != len(lines) - 2 or not names:
        raise FileError(f"{where} must begin with the number of images and a line of names, and have a line for each image after them.")
    files = []
    values = np.empty((len(lines) - 2, len(names)), np.uint8)
    for row, line in enumerate(lines[2:]):
        file, *cells = line.split()
        if len(cells) != len(names) or not set(cells) <= {"1", "-1"}:
            raise FileError(f"Line {row + 3} of {where} must hold a file name and {len(names)} values 1 or -1.")
        files.append(file)
        values[row] = [cell == "1" for cell in cells]
    return AttributeTable(names, tuple(files), values)


def load_celeba_images(files: Sequence[str], side: int, data_dir: str | os.PathLike[str] | None = None) -> Tensor:
    """Load images of CelebA, cut to their middle square and scaled, (N, 3, side, side) uint8.

    Args:
        files: file names, such as ``AttributeTable.files[:1000]``.
        side: height and width of the result.
        data_dir: folder with ``celeba/img_align_celeba/``. Default: the environment variable ``CFPTQ_DATA_DIR``, and then the cache.

    Raises:
        FileError: there is no such folder or file.
        MissingDependencyError: Pillow is not installed.
    """
    folders = [folder / "celeba" / CELEBA_IMAGES for folder in list_search_folders(data_dir)]
    folder = next((candidate for candidate in folders if candidate.is_dir()), None)
    if folder is None:
        raise FileError(
            f"CelebA's images are in none of {', '.join(map(str, folders))}. Its owners forbid passing them on. Get them from "
            f"{CELEBA_FILE.sources[0].url}."
        )
    return read_image_files([folder / Path(file).name for file in files], side, colours=3)


def read_image_files(paths: Sequence[Path], side: int | None, colours: int | None = None) -> Tensor:
    """Read image files of any format that Pillow reads as (N, channels, height, width) uint8.

    Args:
        paths: the files, at least one.
        side: height and width to scale the middle square to, or None to keep the size, which all must share.
        colours: 1 for grey, 3 for red, green and blue, or None for those of the first file.

    Raises:
        FileError: a file is missing, no image, or has another size than the first one.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("Image files need Pillow. Run pip install pillow.") from error
    images: list[NDArray[np.uint8]] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                colours = colours or (1 if image.mode in ("1", "L", "LA", "I", "I;16", "F") else 3)
                square = image.convert("L" if colours == 1 else "RGB")
        except FileNotFoundError:
            raise FileError(f"There is no file {path}.") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise FileError(f"{path} is no image that can be read ({error}).") from error
        if side is not None:
            least = min(square.size)
            left, top = (square.width - least) // 2, (square.height - least) // 2
            square = square.crop((left, top, left + least, top + least)).resize((side, side))
        pixels = np.asarray(square, np.uint8)
        pixels = pixels[None] if colours == 1 else pixels.transpose(2, 0, 1)
        if images and pixels.shape != images[0].shape:
            raise FileError(f"{path} must have the size of the first image, {images[0].shape[1:]}, got {pixels.shape[1:]}.")
        images.append(pixels)
    if not images:
        raise FileError("There must be at least one image file, got none.")
    return torch.from_numpy(np.stack(images))


def locate_images(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Path | None]:
    """Return the path of each file of an image data set, or None for a file that is not on disk.

    Raises:
        DataError: the name is unknown.
    """
    if name not in _IDX:
        raise DataError(f"The images must be those of {' or '.join(IMAGE_NAMES)}, got {name!r}.")
    files = [PublishedFile(name, file, size, digest, (Source(_IDX[name][0]),)) for file, (size, digest) in _IDX[name][1].items()]
    return {file.name: find_file(file, data_dir) for file in files}
