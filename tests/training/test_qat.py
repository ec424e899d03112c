"""cfptq.qat from a loader to a checked file: every preset, the model untouched, the budget met."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cfptq
from cfptq import datasets
from cfptq.actions import ActionSet
from cfptq.auditing import Protocol
from cfptq.errors import ConfigurationError, DataError, ModelError
from cfptq.network import as_predictor, decide
from cfptq.training import QAT_METHODS, Match, Objective, QatMethod, Schedule, TeacherSettings

BRIEF = Schedule(epochs=3, search=0.3, settle=0.3)


def batches(columns: datasets.Columns, size: int = 500) -> list[tuple[Tensor, Tensor]]:
    return list(zip(columns.train[:1500].split(size), columns.train_labels[:1500].split(size), strict=True))


def brief(name: str) -> QatMethod:
    return replace(QAT_METHODS[name], schedule=BRIEF)


def test_the_start_is_not_fitted_to_the_rows_that_choose_the_epoch(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet
) -> None:
    fitted, aside = BRIEF.split(1500, seed=4)
    assert len(aside) == 150 and sorted([*fitted.tolist(), *aside.tolist()]) == list(range(1500))
    assert torch.equal(BRIEF.split(1500, seed=4)[1], aside) and not torch.equal(BRIEF.split(1500, seed=5)[1], aside)
    result = cfptq.qat(model, batches(columns), action_set, method=brief("cfq-qat"), seed=4, progress=False)
    assert result.calibration is not None
    assert torch.equal(result.calibration.factual, columns.train[:1500][fitted])


@pytest.mark.parametrize("name", QAT_METHODS)
def test_every_preset_gives_a_checked_file_within_the_budget(
    name: str, model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    before = copy.deepcopy(model.state_dict())
    result = cfptq.qat(model, batches(columns), action_set, method=brief(name), progress=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert result.plan.average_bits <= 4.0
    assert result.plan.method == name and result.training is not None
    assert (result.input_bits, result.activation_bits) == (32, 8)
    result.to_onnx(tmp_path / "model.onnx", check=True)
    deployed = as_predictor(tmp_path / "model.onnx", example=columns.test)
    f = as_predictor(result.network.graph, example=columns.test)
    assert float((decide(deployed.logits(columns.test)) == decide(f.logits(columns.test))).float().mean()) > 0.8
    if name.startswith("prune"):
        assert all(float((layer.integers == 0).float().mean()) >= 0.5 for layer in result.plan.layers)
    if not name.startswith("r-"):
        assert torch.allclose(f.logits(columns.test), as_predictor(model, example=columns.test).logits(columns.test), atol=1e-5)


def test_presets_that_reproduce_the_paper_follow_it_to_the_letter_where_an_option_does() -> None:
    literal = QAT_METHODS["cfq-paper"]
    steps = literal.teacher.solvers[0]
    assert (steps.normalize, steps.accumulate, steps.early_stop, steps.steps) == (False, False, False, 3)
    assert (literal.per_channel, literal.learned_clips, literal.bits, literal.hinge, literal.keep) == (False, True, "learned", True, ())
    assert (literal.objective, literal.teacher.reached_only, literal.teacher.share) == (Objective(), False, 1.0)


def test_only_our_own_presets_limit_the_drift_of_the_epoch_that_is_kept() -> None:
    limited = {name for name, method in QAT_METHODS.items() if method.schedule.max_drift is not None}
    assert limited == {"cfq-qat", "cfq-learned"}


def test_a_saved_result_tells_what_training_did(model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path) -> None:
    result = cfptq.qat(model, batches(columns), action_set, method=brief("cfq-learned"), budget=3.0, progress=False)
    result.save(tmp_path / "plan")
    loaded = cfptq.load(tmp_path / "plan")
    assert loaded.training == result.training
    assert loaded.plan.digest == result.plan.digest
    assert loaded.plan.average_bits <= 3.0
    with pytest.raises(ModelError, match="pareto needs a result without training"):
        result.pareto()


def test_training_goes_on_from_a_checkpoint(model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path) -> None:
    given = {"method": brief("cfq-qat"), "seed": 3, "progress": False}
    first = cfptq.qat(model, batches(columns), action_set, checkpoint=tmp_path / "run", log=tmp_path / "log.csv", **given)
    again = cfptq.qat(model, batches(columns), action_set, checkpoint=tmp_path / "run", **given)
    other = cfptq.qat(model, batches(columns, size=100), action_set, **given)
    assert first.plan.digest == again.plan.digest == other.plan.digest
    assert (tmp_path / "log.csv").read_text().count("\n") == 4


def test_the_sweep_keeps_the_best_validation_accuracy_and_one_of_its_values(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    swept = replace(brief("cfq-paper"), etas=(0.0, 4.0), schedule=Schedule(epochs=2, max_drift=None))
    result = cfptq.qat(model, batches(columns), action_set, method=swept, progress=False)
    each = [
        cfptq.qat(model, batches(columns), action_set, method=replace(swept, etas=(eta,)), progress=False).plan.digest
        for eta in swept.etas
    ]  # fmt: skip
    assert result.plan.digest in each and each[0] != each[1]
    with pytest.raises(DataError, match="sweep"):
        cfptq.qat(model, batches(columns), action_set, method=swept, checkpoint=tmp_path / "run", progress=False)


def test_compare_takes_methods_that_train_beside_those_that_do_not(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet
) -> None:
    comparison = cfptq.compare(
        model, batches(columns), [(columns.test, columns.test_labels)], action_set, methods=("ptq", "distil-quant", brief("cfq-qat")),
        max_rows=300, protocol=Protocol(max_people=30, resamples=20), progress=False,
    )  # fmt: skip
    assert list(comparison.methods) == ["ptq", "distil-quant", "cfq-qat"]
    assert all(entry["average_bits"] <= 4.0 and entry["stored_bytes"] > 0 for entry in comparison.methods.values())


def test_what_makes_no_sense_is_refused(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    with pytest.raises(ConfigurationError, match="or one of cfq-qat"):
        cfptq.qat(model, batches(columns), action_set, method="magic")
    with pytest.raises(DataError, match="groups must hold one value for each of 1500 training rows, got 2"):
        cfptq.qat(model, batches(columns), action_set, groups=["a", "b"], progress=False)
    for groups in ("sex", lambda rows: ["a"] * len(rows)):
        with pytest.raises(DataError, match=r"one value per (training )?row"):
            cfptq.qat(model, batches(columns), action_set, groups=groups, progress=False)
    with pytest.raises(DataError, match="at least 2 rows"):
        cfptq.qat(model, columns.train[:1], action_set, progress=False)
    with pytest.raises(ConfigurationError, match="sparsity"):
        QatMethod("mine", sparsity=1.0)
    for epochs in (0, 1.5, "x"):
        with pytest.raises(ConfigurationError, match=r"Schedule\.epochs must be a whole number"):
            Schedule(epochs=epochs)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_drift"):
        Schedule(max_drift=-0.1)
    with pytest.raises(ConfigurationError, match="sweeps=1 requires settle > 0"):
        Schedule(sweeps=1)
    with pytest.raises(ConfigurationError, match=r"student_recourse=0\.1 requires settle > 0"):
        Schedule(student_recourse=0.1)
    with pytest.raises(ConfigurationError, match="share of the rejected"):
        Schedule(student_recourse=2, settle=0.3)
    swept = QAT_METHODS["cfq-qat"]
    with pytest.raises(ConfigurationError, match="'boundary' terms"):
        replace(swept, objective=Objective())
    asking = Schedule(settle=0.3, student_recourse=0.1)
    for term in ({"match": Match()}, {"hinge": 0.5}, {"validity": "target"}):
        with pytest.raises(ConfigurationError, match="need not be valid"):
            QatMethod("mine", objective=Objective(task="boundary", **{"validity": "boundary", **term}), schedule=asking)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cached=True"):
        QatMethod("mine", objective=swept.objective, teacher=TeacherSettings(cached=False), schedule=asking)
    with pytest.raises(ConfigurationError, match="pruned"):
        replace(swept, sparsity=0.5)
