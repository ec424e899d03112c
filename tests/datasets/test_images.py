"""MNIST, Fashion-MNIST and CelebA in their published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cfptq.datasets import images
from cfptq.datasets.images import as_rows, load_celeba_attributes, load_celeba_images, load_images, parse_attributes, parse_idx
from cfptq.errors import DataError, FileError


def on_disk(name: str) -> bool:
    if name == "celeba":
        return images.find_file(images.CELEBA_FILE) is not None
    return all(images.locate_images(name).values())


def test_an_idx_file_is_read_by_its_header() -> None:
    content = bytes([0, 0, 8, 3]) + (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    assert parse_idx(content, "file").tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an IDX file"),
        (b"\x1f\x8b\x08\x00" * 4, "must be an IDX file"),
        (bytes([0, 0, 8, 3, 0, 0]), "must be an IDX file"),
        (bytes([0, 0, 8, 1]) + (5).to_bytes(4, "big") + b"abcd", "must hold 5 values, as its header says, got 4"),
        (bytes([0, 0, 8, 1]) + (2**32 - 1).to_bytes(4, "big"), "must hold 4294967295 values"),
    ],
)
def test_damaged_idx_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(FileError, match=message):
        parse_idx(content, "file")


@pytest.mark.skipif(not on_disk("fashion-mnist"), reason="CFPTQ_DATA_DIR has no fashion-mnist folder")
def test_fashion_mnist_has_the_published_numbers() -> None:
    data = load_images("fashion-mnist")
    assert data.train.shape == (60_000, 1, 28, 28) and data.test.shape == (10_000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [6_000] * 10
    assert float(data.train.float().mean()) / 255 == pytest.approx(0.28604, abs=1e-5)
    pair = data.choose_classes((6, 0))
    assert pair.label_names == ("shirt", "T-shirt") and pair.test_labels.bincount().tolist() == [1_000, 1_000]
    assert torch.equal(pair.train[pair.train_labels == 1], data.train[data.train_labels == 0])
    rows = as_rows(data.test[:10])
    assert rows.dtype == torch.float32 and float(rows.min()) >= 0 and float(rows.max()) <= 1
    with pytest.raises(DataError, match="two or more different classes"):
        data.choose_classes((0, 0))


@pytest.mark.skipif(not on_disk("mnist"), reason="CFPTQ_DATA_DIR has no mnist folder")
def test_mnist_has_the_published_numbers() -> None:
    data = load_images("mnist")
    assert data.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(data.train.float().mean()) / 255 == pytest.approx(0.13066, abs=1e-5)


@pytest.mark.skipif(not on_disk("celeba"), reason="CFPTQ_DATA_DIR has no celeba folder")
def test_celeba_has_the_published_rates() -> None:
    table = load_celeba_attributes()
    assert table.values.shape == (202_599, 40) and table.files[0] == "000001.jpg"
    rates = dict(zip(table.names, table.values.mean(0).tolist(), strict=True))
    for name, rate in {"Smiling": 0.482, "Male": 0.417, "Young": 0.774, "Attractive": 0.513, "Eyeglasses": 0.065}.items():
        assert rates[name] == pytest.approx(rate, abs=5e-4)


def test_missing_files_and_unknown_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileError, match="of the data set 'mnist' is not in"):
        load_images("mnist", data_dir=tmp_path)
    with pytest.raises(DataError, match="mnist or fashion-mnist, got 'cifar'"):
        load_images("cifar")
    with pytest.raises(FileError, match="owners forbid passing them on"):
        load_celeba_images(["000001.jpg"], 8, data_dir=tmp_path)


def test_a_table_of_attributes_is_read() -> None:
    table = parse_attributes("2\nSmiling Male \n000001.jpg -1  1\n000002.jpg  1 -1\n", "table")
    assert table.names == ("Smiling", "Male") and table.files == ("000001.jpg", "000002.jpg")
    assert table.values.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the number of images"),
        ("3\nSmiling\n000001.jpg 1\n", "must begin with the number of images"),
        ("1\nSmiling Male\n000001.jpg 1\n", "Line 3 of table must hold a file name and 2 values"),
        ("1\nSmiling\n000001.jpg 2\n", "Line 3 of table must hold a file name and 1 values"),
    ],
)
def test_damaged_tables_of_attributes_are_refused(text: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        parse_attributes(text, "table")


def test_drawn_images_in_celebas_layout_are_read(tmp_path: Path) -> None:
    """CelebA's own images may not be passed on, so that these are drawn, in its size of 178 by 218 pixels."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number, colour in enumerate(((255, 0, 0), (0, 0, 255)), 1):
        picture = np.zeros((218, 178, 3), np.uint8)
        picture[20:198] = colour
        pillow.fromarray(picture).save(folder / f"{number:06d}.jpg", quality=95)
    read = load_celeba_images(["000001.jpg", "000002.jpg"], 16, data_dir=tmp_path)
    assert read.shape == (2, 3, 16, 16) and read.dtype == torch.uint8
    # The middle square is one colour, but for what JPEG changes.
    assert int(read[0, 0].min()) > 240 and int(read[0, 2].max()) < 15 and int(read[1, 2].min()) > 240
    (folder / "000003.jpg").write_bytes(b"no image")
    with pytest.raises(FileError, match="no image that can be read"):
        load_celeba_images(["000003.jpg"], 16, data_dir=tmp_path)
    with pytest.raises(FileError, match="There is no file"):
        load_celeba_images(["000009.jpg"], 16, data_dir=tmp_path)
