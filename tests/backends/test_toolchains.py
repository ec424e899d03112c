"""Each toolchain's default quantization works, or its entry names the extra that is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.backends.latency import find_slower, measure_latency
from cfptq.backends.toolchains import TOOLCHAINS, Toolchain, deploy_toolchain
from cfptq.errors import MissingDependencyError
from cfptq.network import Predictor, to_onnx_model
from cfptq.pipeline.deploy import deploy_all
from cfptq.pipeline.task import QuantizationTask, TaskSettings, build_task

COLUMNS = 6


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return torch.randn(600, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def action_set(rows: torch.Tensor) -> ActionSet:
    return ActionSet.from_columns(rows, [Continuous(f"f{column}", column=column) for column in range(COLUMNS)], favourable=1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(COLUMNS, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))
        made(torch.randn(64, COLUMNS))
        made.eval()
        with torch.no_grad():  # half of the people are rejected
            made[-1].bias[1] -= made(torch.randn(500, COLUMNS)).diff(dim=1).median()
    return made


@pytest.fixture(scope="module")
def teacher(model: nn.Module, rows: torch.Tensor, action_set: ActionSet) -> QuantizationTask:
    return build_task(model, [rows], action_set, TaskSettings(progress=False))


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_every_toolchain_quantizes_by_itself(name: str, teacher: QuantizationTask, tmp_path: Path) -> None:
    try:
        TOOLCHAINS[name].load()
    except MissingDependencyError as error:
        if TOOLCHAINS[name].extra is None:
            raise
        pytest.skip(str(error))
    student, path, run = deploy_toolchain(name, teacher.network, teacher.rows, tmp_path, teacher.decision)
    said, expected = student.logits(teacher.rows), teacher.predictor.logits(teacher.rows)
    assert path.stat().st_size > 0
    assert measure_latency({name: run}, teacher.rows, batches=(3,), rounds=1)[name][3] > 0
    assert not torch.allclose(said, expected, atol=1e-5)  # a toolchain that finds nothing to quantize says nothing
    assert (said.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.9
    points = teacher.rows[:4].clone().requires_grad_()
    student.surrogate(points).sum().backward()
    assert points.grad is not None and bool(points.grad.any())


def test_a_missing_toolchain_is_a_row_that_names_its_extra(
    teacher: QuantizationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith(("torchao", "cfptq.backends.pt2e"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delattr("cfptq.backends.pt2e", raising=False)

    def judge(student: Predictor, path: Path, **deployed: Any) -> dict[str, Any]:
        return deployed

    done = deploy_all(teacher, ["pt2e-int8", "ort-int8", "mixed-ptq"], [4.0, 8.0], tmp_path, judge, progress=False)
    assert set(done.budgets["4.0"]) == set(done.budgets["8.0"]) == {"ort-int8", "mixed-ptq"}
    assert "cfptq[pt2e]" in done.unavailable["pt2e-int8"]
    assert set(done.runs) == {"ort-int8", "mixed-ptq"}
    comparison = cfptq.Comparison("data", 0, {}, done.budgets, "4.0", done.unavailable)
    assert comparison.to_dict()["unavailable"] == done.unavailable


def test_a_toolchain_file_needs_no_import_check_of_its_own() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'cfptq\[new\]'"):
        Toolchain(8, "no_such_toolchain:quantize_by_default", extra="new").load()


def test_latencies_are_measured_for_each_file_and_batch(teacher: QuantizationTask) -> None:
    model = to_onnx_model(teacher.network)
    content = model.SerializeToString()
    found = measure_latency({"fp32": content, "again": content}, teacher.rows, batches=(1, 300), rounds=3)
    assert set(found) == {"fp32", "again"} and set(found["again"]) == {1, 300}
    assert all(taken > 0 for times in found.values() for taken in times.values())
    assert onnx.load_from_string(content).graph.input[0].name == "input"


def test_what_is_slower_than_fp32_is_said() -> None:
    found = {"fp32": {1: 10.0, 256: 100.0}, "small": {1: 15.0, 256: 60.0}, "as fast": {1: 10.4, 256: 100.0}}
    assert find_slower("fp32", found) == {"small": [1]}
    comparison = cfptq.Comparison("data", 0, {}, {"4.0": {}}, "4.0", latency=found)
    from rich.console import Console

    console = Console(record=True, width=120)
    console.print(comparison)
    assert "small is slower than fp32 on this machine at batch 1" in console.export_text()
