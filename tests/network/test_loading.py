"""A model named on the command line is built, filled with its state, or refused with a mend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from cfptq.errors import FileError, ModelError
from cfptq.network.loading import load_factory

SOURCE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

def number():
    return 7

def broken():
    raise RuntimeError("no such size")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "factory_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    sys.modules.pop("factory_models", None)


def test_weights_of_the_state_are_in_the_model(folder: Path) -> None:
    trained = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    save_model(trained, str(folder / "state.safetensors"))
    model = load_factory("factory_models:build", folder / "state.safetensors")
    assert not model.training
    x = torch.randn(5, 3)
    assert torch.equal(model(x), trained(x))


def test_without_state_the_factory_decides_and_the_random_state_stays(folder: Path) -> None:
    before = torch.get_rng_state()
    assert isinstance(load_factory("factory_models:build"), nn.Sequential)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shared_tensor_may_be_stored_once(folder: Path) -> None:
    save_file({"first.weight": torch.eye(3)}, folder / "tied.safetensors")
    model = load_factory("factory_models:Tied", folder / "tied.safetensors")
    assert torch.equal(model.get_parameter("second.weight"), torch.eye(3))


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".pth", ".pkl", ".bin"])
def test_formats_that_unpickle_are_refused_unread(folder: Path, ending: str) -> None:
    with pytest.raises(FileError, match="safetensors"):
        load_factory("factory_models:build", folder / f"state{ending}")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("factory_models", "package.module:function"),
        (":build", "package.module:function"),
        ("no_such_module_here:build", "Importing"),
        ("factory_models:absent", "has no 'absent'"),
        ("factory_models:number", "must return a torch.nn.Module, got int"),
        ("factory_models:broken", "no such size"),
    ],
)
def test_a_spec_that_gives_no_model_is_refused(folder: Path, spec: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_factory(spec)


def test_a_state_that_does_not_fit_is_refused_by_name(folder: Path) -> None:
    save_file({"0.weight": torch.zeros(4, 3), "9.weight": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"lacks 0\.bias.*unknown 9\.weight"):
        load_factory("factory_models:build", folder / "other.safetensors")
    save_model(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), str(folder / "wide.safetensors"))
    with pytest.raises(ModelError, match=r"\(5,\) in the file and \(4,\)"):
        load_factory("factory_models:build", folder / "wide.safetensors")


def test_missing_and_corrupt_states_are_file_errors(folder: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        load_factory("factory_models:build", folder / "absent.safetensors")
    (folder / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(FileError, match="not a valid safetensors file"):
        load_factory("factory_models:build", folder / "cut.safetensors")
