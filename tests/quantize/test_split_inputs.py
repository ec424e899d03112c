"""Input columns with one bit more or less than their channel, from the choice of columns to the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.errors import ModelError
from cfptq.network import DecisionRule, Head, capture, target_margin
from cfptq.network.onnx.session import open_session
from cfptq.quantize import Activations, CalibrationSet, LayerPlan, RoundedWeight, count_bits
from cfptq.quantize.column_importance import choose_fine_inputs
from cfptq.quantize.split_inputs import find_column_factors, limit_columns, spread_weight_bits

COLUMNS = 16


@pytest.fixture(scope="module")
def result() -> cfptq.Result:
    generator = torch.Generator().manual_seed(0)
    # Half of the columns are levels that few people have.
    x = torch.cat([torch.randn(400, COLUMNS // 2, generator=generator), 0.1 * torch.randn(400, COLUMNS // 2, generator=generator)], dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(COLUMNS, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    space = ActionSet.from_columns(x, [Continuous(f"x{column}", column=column) for column in range(COLUMNS)], favourable=1)
    return cfptq.calibrate(model, [x], space, budget=3.0, progress=False)


def test_the_columns_that_move_margins_most_are_fine(result: cfptq.Result) -> None:
    first = result.plan.layers[0]
    assert sum(first.fine_inputs) == COLUMNS // 2 and all(first.fine_inputs[: COLUMNS // 2])
    assert [layer.fine_inputs for layer in result.plan.layers[1:]] == [(), ()]


def test_importance_is_what_independent_errors_of_the_weights_do_to_the_margin() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = capture(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.zeros(2, 8))
        rows = torch.randn(300, 8) * torch.linspace(0.2, 2.0, 8)
        target = torch.ones(300, dtype=torch.int64)
        calibration = CalibrationSet(rows, torch.zeros(300, dtype=torch.uint8), torch.rand(300) + 0.5, torch.arange(300), target)
        share = (calibration.weights / calibration.weights.sum()).double()
        rule, name = DecisionRule(Head.LOGITS), network.layers[0].name
        weight, bias = network.weight(name), network.bias(name)
        effect = torch.zeros(8, dtype=torch.float64)
        margin = target_margin(network(rows), target)
        for column in range(8):
            for channel in range(6):
                # A small error of one weight, whose mean effect on the channel the bias takes up.
                moved = weight.clone()
                moved[channel, column] += 1e-3
                shifted = bias.clone()
                shifted[channel] -= 1e-3 * float(share.float() @ rows[:, column])
                changed = network.with_parameters(
                    {**{it.name: (network.weight(it.name), network.bias(it.name)) for it in network.layers}, name: (moved, shifted)}
                )
                effect[column] += share @ (target_margin(changed(rows), target) - margin).double().square()
    fine = choose_fine_inputs(network, calibration, rule, Activations(input_bits=32))[name]
    assert set(np.flatnonzero(fine)) == set(effect.argsort(descending=True)[:4].tolist())
    assert choose_fine_inputs(network, calibration, rule, Activations(input_bits=8)) == {}


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_integers_of_both_halves_come_back_and_stay_within_their_widths(data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.sampled_from((0, 2, 3, 4, 5, 6, 7)), min_size=1, max_size=5))
    fine = tuple(data.draw(st.lists(st.booleans(), min_size=2, max_size=6)))
    limits = limit_columns(bits, fine)
    drawn = torch.rand(limits.shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    rounded = RoundedWeight(torch.round((2 * drawn - 1) * limits).to(torch.int8), torch.rand(len(bits)) + 0.1, None)
    joined = rounded.join_columns(fine)
    again = joined.split_columns(fine)
    assert torch.equal(again.integers, rounded.integers) and torch.equal(again.scale, rounded.scale)
    # The weight is each integer times the step of its column.
    assert torch.allclose(joined.weight(), rounded.weight() / find_column_factors(fine))
    layer = LayerPlan("l", "linear", tuple(bits), joined.integers, joined.scale, None, "x", fine_inputs=fine)
    by_hand = sum(0 if b == 0 else b + 1 if is_fine else max(b - 1, 2) for b in bits for is_fine in fine)
    assert layer.total_bits == by_hand == count_bits(tuple(bits), limits.numel(), (), fine) == spread_weight_bits(bits, fine).sum()
    assert int(joined.integers.abs().max()) <= 2 ** (layer.held_bits - 1) - 1


def test_integers_off_the_coarse_step_or_beyond_a_columns_width_are_refused(result: cfptq.Result) -> None:
    first = result.plan.layers[0]
    coarse = first.fine_inputs.index(False)
    for value, message in ((3, "multiples of 4"), (124, "must stay within")):
        integers = first.integers.clone()
        integers[:, coarse] = value
        with pytest.raises(ModelError, match=message):
            replace(first, integers=integers)


def test_the_packed_file_computes_what_the_plain_one_does_and_has_the_bytes_that_are_counted(result: cfptq.Result, tmp_path: Path) -> None:
    people = torch.randn(500, COLUMNS, generator=torch.Generator().manual_seed(1))
    result.to_onnx(tmp_path / "packed.onnx", check=True)
    result.to_onnx(tmp_path / "plain.onnx", storage="plain")
    found = [open_session((tmp_path / name).read_bytes()).run(None, {"input": people.numpy()})[0] for name in ("packed.onnx", "plain.onnx")]
    assert np.allclose(*found, rtol=0, atol=1e-6)
    with torch.no_grad():
        difference = np.abs(found[0] - result.module()(people).numpy()).max(axis=1)
    assert (difference <= 1e-3).mean() >= 0.99
    file = onnx.load(tmp_path / "packed.onnx")
    others = ("scale", "zero_point", "bias_integers", "bias_grid")
    held = sum(len(tensor.raw_data) for tensor in file.graph.initializer if not tensor.name.endswith(others))
    assert held <= result.plan.stored_bytes
    again = cfptq.load(_saved(result, tmp_path))
    assert again.plan.digest == result.plan.digest and again.plan.layers[0].fine_inputs == result.plan.layers[0].fine_inputs


def _saved(result: cfptq.Result, folder: Path) -> Path:
    result.save(folder / "plan")
    return folder / "plan"
