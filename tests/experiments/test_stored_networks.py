"""Stored networks: what is read is what was written, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cfptq import datasets
from cfptq.errors import CfptqError, FileError
from cfptq.experiments import Experiment, Recipe
from cfptq.experiments.stored_networks import INDEX_FILE, compute_sha256, read_index, read_network, write_network

TEXT = "{schema: 1, dataset: synthetic, model: {hidden: [8]}, training: {epochs: 2}, networks: stored}"
FILE = "synthetic-3.safetensors"


def write_recipe(folder: Path, text: str = TEXT) -> Recipe:
    (folder / "mine.yaml").write_text(text)
    return Recipe.load(folder / "mine.yaml")


@pytest.fixture(scope="module")
def trained() -> Experiment:
    return Recipe.parse(TEXT).prepare(3, train=True, progress=False)


@pytest.fixture(scope="module")
def stored(trained: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and the network of seed 3."""
    folder = tmp_path_factory.mktemp("stored")
    recipe = write_recipe(folder)
    write_network(folder / "stored", trained.model, recipe.describe_network(trained.columns, 3), trained.training)
    return folder


@pytest.fixture
def own(stored: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to spoil."""
    return shutil.copytree(stored, tmp_path / "own")


def test_a_recipe_reads_the_network_of_its_seed_with_the_same_logits(stored: Path, trained: Experiment) -> None:
    read = Recipe.load(stored / "mine.yaml").prepare(3, progress=False)
    rows = trained.columns.test
    with torch.no_grad():
        assert torch.equal(read.model(rows), trained.model(rows))
    assert not read.model.training
    assert read.training == trained.training
    assert read.network.to_dict() == {"source": "read", "sha256": compute_sha256((stored / "stored" / FILE).read_bytes())}


def test_a_network_is_read_and_not_trained(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "_train", lambda *_: pytest.fail("it is trained"))
    assert Recipe.load(stored / "mine.yaml").prepare(3, progress=False).network.source == "read"


def test_it_is_trained_where_that_is_asked_for(stored: Path) -> None:
    network = Recipe.load(stored / "mine.yaml").prepare(3, train=True, progress=False).network
    assert network.source == "trained" and network.note is None
    # On one machine with the same versions, training gives the file that is stored.
    assert network.sha256 == read_index(stored / "stored")[FILE]


def test_a_seed_without_a_stored_network_is_trained_and_says_so(stored: Path) -> None:
    network = Recipe.load(stored / "mine.yaml").prepare(4, progress=False).network
    assert network.source == "trained" and "no network of synthetic for seed 4" in network.to_dict()["note"]


def test_a_recipe_that_names_no_networks_trains_without_a_note(trained: Experiment) -> None:
    network = Recipe.parse(TEXT.replace(", networks: stored", "")).prepare(3, progress=False).network
    assert network.source == "trained" and network.note is None


def test_equal_networks_have_equal_bytes(stored: Path, trained: Experiment, tmp_path: Path) -> None:
    description = Recipe.parse(TEXT).describe_network(trained.columns, 3)
    assert write_network(tmp_path / "new", trained.model, description, trained.training) == read_index(stored / "stored")[FILE]
    assert read_index(tmp_path / "new") == read_index(stored / "stored")


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("hidden: [8]", "hidden: [9]", "key backbone"),
        ("hidden: [8]", "hidden: [8], batch_norm: true", "key backbone"),
        ("epochs: 2", "epochs: 3", "key training"),
    ],
)
def test_a_network_that_was_trained_otherwise_is_refused(own: Path, before: str, after: str, complaint: str) -> None:
    recipe = write_recipe(own, TEXT.replace(before, after))
    with pytest.raises(FileError, match=f"{FILE} does not fit. The {complaint} must be .*--train"):
        recipe.prepare(3, progress=False)
    assert recipe.prepare(3, train=True, progress=False).network.source == "trained"


def test_a_network_of_another_seed_or_data_set_is_refused_under_its_name(own: Path) -> None:
    shutil.copy(own / "stored" / FILE, own / "stored" / "synthetic-5.safetensors")
    digest = compute_sha256((own / "stored" / FILE).read_bytes())
    (own / "stored" / INDEX_FILE).write_text(json.dumps({"schema": 1, "sha256": {"synthetic-5.safetensors": digest}}))
    with pytest.raises(FileError, match="key seed must be 5, got 3"):
        Recipe.load(own / "mine.yaml").prepare(5, progress=False)


def test_a_network_of_other_columns_is_refused(own: Path) -> None:
    # The people of synthetic, and with them the encoder's statistics, differ between seeds.
    recipe = Recipe.load(own / "mine.yaml")
    others = datasets.encode(recipe.dataset(8))
    model = recipe.backbone.build(others.train.shape[1], 2, 3)
    with pytest.raises(FileError, match="other columns or training rows"):
        read_network(own / "stored", recipe.describe_network(others, 3), model)


def test_columns_fit_by_names_statistics_and_classes_whatever_their_rounding() -> None:
    people = datasets.load("synthetic")
    columns = datasets.encode(people).describe()
    assert columns.fits(datasets.encode(people).describe())
    assert not columns.fits(datasets.encode(datasets.load("synthetic", seed=1)).describe())
    encoder = datasets.fit_encoder(people)
    numbers = encoder.named_transformers_["numbers"]
    for change, same in ((1e-12, True), (1e-5, False)):
        numbers.mean_ = numbers.mean_ * (1 + change)
        assert datasets.encode(people, encoder).describe().fits(columns) is same
    assert not columns.fits(replace(columns, names="other"))
    assert not columns.fits(replace(columns, class_counts=columns.class_counts[::-1]))


def _restamp(folder: Path, content: bytes) -> None:
    """Store bytes with their SHA-256, as somebody would who is hostile."""
    (folder / FILE).write_bytes(content)
    (folder / INDEX_FILE).write_text(json.dumps({"schema": 1, "sha256": {FILE: compute_sha256(content)}}))


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / FILE).read_bytes())
    content[-1] ^= 1
    (folder / FILE).write_bytes(content)


def _put_tensors(change: Callable[[dict[str, torch.Tensor]], object], described: bool = True) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = (folder / FILE).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        tensors = safetensors.torch.load(content)
        change(tensors)
        _restamp(folder, safetensors.torch.save(tensors, metadata=header["__metadata__"] if described else None))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_flip_a_bit, "must have the SHA-256"),
        (lambda folder: (folder / FILE).unlink(), "no file"),
        (lambda folder: (folder / INDEX_FILE).unlink(), "no file"),
        (lambda folder: (folder / INDEX_FILE).write_text("{}"), "index of stored networks"),
        (lambda folder: (folder / INDEX_FILE).write_text('{"schema": 1, "sha256": {"synthetic-3.safetensors": "12"}}'), "hexadecimal"),
        (lambda folder: (folder / INDEX_FILE).write_text("[" * 100_000), "nested"),
        (lambda folder: _restamp(folder, (folder / FILE).read_bytes()[:-8]), "not a valid safetensors"),
        (lambda folder: _restamp(folder, b"\x80\x04\x95pickle"), "not a valid safetensors"),
        (lambda folder: _restamp(folder, b""), "not a valid safetensors"),
        (_put_tensors(lambda tensors: None, described=False), "does not say"),
        (_put_tensors(lambda tensors: tensors.pop("head.bias")), r"differ in head\.bias"),
        (_put_tensors(lambda tensors: tensors.update(more=torch.zeros(2))), "differ in more"),
        (_put_tensors(lambda tensors: tensors.update({"head.bias": torch.zeros(3)})), r"shape \(2,\)"),
        (_put_tensors(lambda tensors: tensors.update({"head.bias": torch.zeros(2).double()})), "float32"),
        (_put_tensors(lambda tensors: tensors["head.bias"].fill_(float("nan"))), "finite"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(own: Path, spoil: Callable[[Path], object], complaint: str) -> None:
    spoil(own / "stored")
    with pytest.raises(CfptqError, match=complaint):
        Recipe.load(own / "mine.yaml").prepare(3, progress=False)


def test_networks_are_found_from_any_folder(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    assert Recipe.load("mine.yaml").prepare(3, progress=False).network.source == "read"
    monkeypatch.chdir(tmp_path)
    assert Recipe.load(stored / "mine.yaml").prepare(3, progress=False).network.source == "read"


def test_a_folder_of_networks_must_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(CfptqError, match="null character"):
        write_recipe(tmp_path, TEXT.replace("stored", '"a\\0b"'))
