"""Structure in exported files, rows that alone set a range, and decisions that large numbers change."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.backends.onnxruntime import read_integers
from cfptq.errors import ConfigurationError, DataWarning, ModelError
from cfptq.network import capture
from cfptq.pipeline.method_presets import METHODS
from cfptq.quantize.extreme_rows import MIN_STRETCH, find_extreme_rows
from cfptq.training import QAT_METHODS

NAMES = ("age", "income", "hours", "debt", "years", "loans")


def rows(count: int = 400, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def actions(x: Tensor) -> ActionSet:
    features = [Continuous(name, column=number) for number, name in enumerate(NAMES)]
    return ActionSet.from_columns(x, features, favourable=1, column_names=NAMES)


def model(x: Tensor, seed: int = 0) -> nn.Sequential:
    """A network that is blind to the last column, has a first row of one sign, and accepts half of the rows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)).eval()
    with torch.no_grad():
        made[0].weight[:, 5] = 0
        made[2].weight[0].abs_()
        scores = made(x)
        made[4].bias[1] -= (scores[:, 1] - scores[:, 0]).median()
    return made


def slipped(x: Tensor, row: int = 7, column: int = 1) -> Tensor:
    changed = x.clone()
    changed[row, column] = (x[row, column].abs() + 1) * 1000
    return changed


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [2.5, 8.0])
def test_the_file_of_every_preset_keeps_zeros_and_signs(name: str, budget: float, tmp_path: Path) -> None:
    x = rows()
    network = model(x)
    result = cfptq.calibrate(network, [x], actions(x), method=name, budget=budget, progress=False)
    result.to_onnx(tmp_path / "q.onnx", storage="plain")  # A packed file lacks dropped channels.
    file = onnx.load(tmp_path / "q.onnx")
    for layer in ("0", "2", "4"):
        weight = network.get_submodule(layer).weight.detach().numpy()
        integers = read_integers(file, layer)
        assert not integers[weight == 0].any() and (integers * np.sign(weight) >= 0).all()
    kept = result.structure
    assert (kept.zeros, kept.zeros_kept) == (12, 12) and kept.signs_kept == kept.signed == 228
    assert any("12 weights of 0 stay 0" in note for note in result.notes)


def test_a_trained_file_keeps_them_too(tmp_path: Path) -> None:
    x = rows()
    network = model(x)
    method = replace(QAT_METHODS["cfq-qat"], schedule=replace(QAT_METHODS["cfq-qat"].schedule, epochs=4, least_steps=0, learning_rate=0.05))
    result = cfptq.qat(network, [(x, network(x).argmax(1))], actions(x), method=method, budget=3.0, progress=False)
    assert result.plan.keep == ("zeros", "signs")
    assert result.structure.zeros_kept == result.structure.zeros == 12 and result.structure.signs_kept == result.structure.signed


def test_keep_is_an_argument_of_calibrate_and_is_saved(tmp_path: Path) -> None:
    x = rows()
    free = cfptq.calibrate(model(x), [x], actions(x), budget=2.5, keep=(), progress=False)
    assert free.plan.keep == () and free.structure.signs_kept < free.structure.signed
    zeros = cfptq.calibrate(model(x), [x], actions(x), budget=2.5, keep=("zeros",), progress=False)
    zeros.save(tmp_path / "plan")
    again = cfptq.load(tmp_path / "plan")
    assert again.plan.keep == again.method.keep == ("zeros",) and again.structure == zeros.structure
    with pytest.raises(ConfigurationError, match="keep must hold"):
        cfptq.calibrate(model(x), [x], actions(x), keep=("sign",), progress=False)  # type: ignore[arg-type]


def test_presets_that_reproduce_published_training_keep_nothing() -> None:
    assert {name for name, method in QAT_METHODS.items() if method.keep} == {"cfq-qat", "cfq-learned"}
    assert all(method.keep == ("zeros", "signs") for method in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_row_column_and_value_of_a_slip(name: str) -> None:
    x = rows()
    slip = slipped(x)
    with pytest.warns(DataWarning, match=rf"[Cc]alibration row 7 has {float(slip[7, 1]):.6g} in column 'income'"):
        result = cfptq.calibrate(model(x), [slip], actions(x), method=name, progress=False)
    assert any("row 7" in note and "'income'" in note for note in result.notes)


@pytest.mark.parametrize("input_bits", [None, 8])
@pytest.mark.parametrize("column", [0, 3, 4])
def test_the_default_method_is_not_ruled_by_one_row(input_bits: int | None, column: int) -> None:
    x, others = rows(), rows(1000, seed=1)
    network = model(x)
    with pytest.warns(DataWarning, match="left out"):
        result = cfptq.calibrate(network, [slipped(x, column=column)], actions(x), budget=8.0, input_bits=input_bits, progress=False)
    flips = (result.module()(others).argmax(1) != network(others).argmax(1)).float().mean()
    assert float(flips) < 0.02


def test_a_slip_gives_the_plan_of_the_other_rows() -> None:
    x = rows()
    with pytest.warns(DataWarning):
        with_slip = cfptq.calibrate(model(x), [slipped(x)], actions(x), progress=False)
    without = cfptq.calibrate(model(x), [torch.cat((x[:7], x[8:]))], actions(x), progress=False)
    assert with_slip.plan.digest == without.plan.digest


def test_ordinary_and_heavy_tailed_rows_are_not_named() -> None:
    generator = torch.Generator().manual_seed(0)
    gain = torch.where(torch.rand(1000, generator=generator) < 0.01, 99999.0, 0.0)  # a capped value that many share
    rare = (torch.arange(1000) == 3).float()  # a level that one person has
    income = torch.exp(1.5 * torch.randn(1000, generator=generator))
    x = torch.stack([gain / 1e4, rare, income, *torch.randn(3, 1000, generator=generator)], dim=1)
    assert find_extreme_rows(capture(model(x), x[:2]), x) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        cfptq.calibrate(model(rows()), [rows()], actions(rows()), method="ptq", progress=False)


def test_a_row_that_sets_only_a_hidden_range_is_named_by_its_tensor() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.exp(self.first(x)))

    x = rows().clamp(-1, 1)
    product = Product().eval()
    with torch.no_grad():
        product.first.weight.fill_(1.0)
        product.first.bias.zero_()
    x[9] = 1.9
    (found,) = find_extreme_rows(capture(product, x[:2]), x)
    assert found.row == 9 and found.tensor and found.stretch > MIN_STRETCH


def test_numbers_that_eight_bits_cannot_hold_are_refused_or_named() -> None:
    x = rows()
    network = model(x)
    with torch.no_grad():
        network[0].bias.fill_(1e5)
        scores = network(x).double()
        network[4].bias[1] -= float((scores[:, 1] - scores[:, 0]).median())
    with pytest.raises(ModelError, match="bias before layer '2'"):
        cfptq.calibrate(network, [x], actions(x), budget=8.0, progress=False)
    network = model(x)
    with torch.no_grad():
        network[2].weight[3] *= 1e12
        scores = network(x).double()
        network[4].bias[1] -= float((scores[:, 1] - scores[:, 0]).median())
    with pytest.raises(ModelError, match="largest input of layer '4'"):
        cfptq.calibrate(network, [x], actions(x), budget=8.0, progress=False)
