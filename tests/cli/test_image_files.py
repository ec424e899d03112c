"""Images that commands read, from .npz files and from folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cfptq.actions import SemanticActionSet
from cfptq.cli.image_files import holds_images, load_images
from cfptq.cli.inputs import read_images, read_loader
from cfptq.errors import CfptqError, DataError, FileError

SHAPE = (1, 4, 4)
PIXELS = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)


def test_bytes_are_divided_and_the_reading_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "people.npz", images=PIXELS, digit=np.array([1, 0, 2]))
    read = load_images(tmp_path / "people.npz", SHAPE, "digit")
    assert torch.equal(read.rows, torch.from_numpy(PIXELS).float()[:, None] / 255)
    assert read.labels == [1, 0, 2]
    assert read.reading == "people.npz: 3 images from the array 'images', bytes divided by 255."


def test_floats_stay_and_colours_move_to_the_front(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 4, 5, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", anything=values)
    read = load_images(tmp_path / "x.npz", (3, 4, 5), None)
    assert torch.equal(read.rows, torch.from_numpy(values).permute(0, 3, 1, 2)) and read.labels is None
    assert "colours moved to the front" in read.reading


def test_a_folder_holds_images_by_class(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for name, place in (("yes", 0), ("no", 1)):
        (tmp_path / "set" / name).mkdir(parents=True)
        pillow.fromarray(PIXELS[place]).save(tmp_path / "set" / name / "a.png")
    read = load_images(tmp_path / "set", SHAPE, "label")
    assert read.labels == [0, 1] and read.reading.endswith("; no is class 0, yes is class 1.")
    assert torch.equal(read.rows[:, 0] * 255, torch.from_numpy(PIXELS[[1, 0]]).float())
    pillow.fromarray(PIXELS[0]).save(tmp_path / "set" / "b.png")
    with pytest.raises(FileError, match="holds both"):
        load_images(tmp_path / "set", SHAPE, None)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileError, match="holds no image files"):
        load_images(tmp_path / "none", SHAPE, None)


@pytest.mark.parametrize(
    ("arrays", "label", "message"),
    [
        ({"images": PIXELS}, "digit", "has no array 'digit'"),
        ({"images": PIXELS, "digit": np.zeros(2, int)}, "digit", "must hold a whole number for each of the 3 images"),
        ({"images": PIXELS, "digit": np.zeros(3)}, "digit", "must hold a whole number"),
        ({"one": PIXELS, "two": PIXELS}, None, "must hold its images under one of"),
        ({"images": PIXELS[:, :2]}, None, "must have the shape"),
        ({"images": PIXELS.astype(np.int64)}, None, "must be bytes"),
        ({"images": PIXELS[:0]}, None, "must have the shape"),
        ({"images": np.array(["a"])}, None, "must be numbers"),
        ({"images": np.array([{}], dtype=object)}, None, "no .npz file of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], label: str | None, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CfptqError, match=message):
        load_images(tmp_path / "x.npz", SHAPE, label)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"text")
    assert holds_images(tmp_path / "x.npz")
    with pytest.raises(FileError, match=r"no \.npz file"):
        load_images(tmp_path / "x.npz", SHAPE, None)


def test_tables_hold_attributes_and_not_images(tmp_path: Path) -> None:
    pd.DataFrame({"smile": [0.0, 1.0], "male": [1.0, 0.0], "y": [0, 1]}).to_csv(tmp_path / "people.csv", index=False)
    attributes = SemanticActionSet(("male", "smile"), 1.0)
    [(rows, labels)] = read_loader(tmp_path / "people.csv", attributes, "y")
    assert rows.tolist() == [[1.0, 0.0], [0.0, 1.0]] and labels.tolist() == [0, 1]
    [alone] = read_loader(tmp_path / "people.csv", attributes, "other", may_lack_label=True)
    assert torch.equal(alone, rows)
    with pytest.raises(DataError, match="none for hat"):
        read_loader(tmp_path / "people.csv", SemanticActionSet(("hat",), 1.0), None)
    np.savez(tmp_path / "x.npz", images=PIXELS)
    with pytest.raises(DataError, match="the action set speaks of a table"):
        read_images(tmp_path / "x.npz", attributes, None)
    with pytest.raises(CfptqError, match="must be finite"):
        attributes.encode(pd.DataFrame({"male": [np.nan], "smile": [0.0]}))
