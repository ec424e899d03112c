"""Exact recourse on quantized networks, whose activation quantizers are integer variables."""

from __future__ import annotations

from math import isinf
from pathlib import Path

import pytest
import torch
from small_world import least_cost, network, people
from torch import Tensor, nn

import cfptq
from cfptq.network import OnnxModule, as_predictor
from cfptq.recourse import Exact, Status, solve
from cfptq.recourse.exact import read_network

PROVEN = (Status.INFEASIBLE, Status.IMMUTABLE)


@pytest.fixture(scope="module")
def quantized() -> tuple[cfptq.Result, cfptq.ActionSet, Tensor]:
    """A network with 4-bit weights and 8-bit activations on average."""
    action_set, rows = people(40, seed=3, max_changes=2)
    model = network(10, seed=1, hidden=6)
    result = cfptq.calibrate(model, [rows], action_set.replace(favourable=0), method="ptq", budget=4.0, max_rows=40, progress=False)
    return result, action_set, rows[:5]


@pytest.fixture(scope="module", params=["the fake-quantized twin", "the ONNX file"])
def deployed(request: pytest.FixtureRequest, quantized: tuple[cfptq.Result, cfptq.ActionSet, Tensor], tmp_path_factory: pytest.TempPathFactory) -> nn.Module | Path:  # fmt: skip # noqa: E501
    if request.param == "the fake-quantized twin":
        return quantized[0].module()
    path: Path = tmp_path_factory.mktemp("quantized") / "model.onnx"
    quantized[0].to_onnx(path)
    return path


def test_the_network_read_rounds_as_the_artefact_does(
    deployed: nn.Module | Path, quantized: tuple[cfptq.Result, cfptq.ActionSet, Tensor]
) -> None:
    rows = quantized[2]
    predictor = as_predictor(deployed, example=rows)
    read = read_network(predictor, rows)
    assert read.has_rounding
    assert torch.from_numpy(read(rows.double().numpy())).float() == pytest.approx(predictor.logits(rows), abs=1e-4)


@pytest.mark.parametrize("max_enumerated", [0, 10_000])
def test_the_quantized_network_is_solved_to_the_cheapest_of_all_actions(
    deployed: nn.Module | Path, quantized: tuple[cfptq.Result, cfptq.ActionSet, Tensor], max_enumerated: int
) -> None:
    _, action_set, rows = quantized
    batch = solve(deployed, rows, action_set, target=0, method=Exact(max_enumerated=max_enumerated), progress=False)
    asked = deployed if isinstance(deployed, nn.Module) else OnnxModule(deployed)
    for row, status in enumerate(batch.statuses):
        if status is Status.FAVOURABLE:
            continue
        least = least_cost(asked, rows[row], action_set, 0)
        if isinf(least):
            assert status in PROVEN
        else:
            assert status is Status.OPTIMAL and float(batch.cost[row]) == pytest.approx(least, rel=3e-4)


def test_relaxed_activations_say_so_and_bound_what_the_quantized_network_costs(
    quantized: tuple[cfptq.Result, cfptq.ActionSet, Tensor],
) -> None:
    result, action_set, rows = quantized
    model = result.module()
    batch = solve(model, rows, action_set, target=0, method=Exact(max_enumerated=0, activations="relaxed"), progress=False)
    assert batch.method == "exact with relaxed activations"
    assert batch.bound is not None
    for row, status in enumerate(batch.statuses):
        least = least_cost(model, rows[row], action_set, 0)
        if status is not Status.FAVOURABLE:
            assert float(batch.bound[row]) <= least * (1 + 1e-4)
        if status is Status.OPTIMAL:
            assert float(batch.cost[row]) == pytest.approx(least, rel=3e-4)
