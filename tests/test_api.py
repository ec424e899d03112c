"""calibrate, save, load and compare end to end on generated people: what works, and what is refused without a trace."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.linear_model import LogisticRegression
from torch import nn

import cfptq
from cfptq import datasets, models
from cfptq.actions import ActionSet
from cfptq.auditing import Protocol
from cfptq.backends.onnxruntime import order_for_file, read_integers
from cfptq.errors import ActionSetError, BudgetError, CfptqError, ConfigurationError, DataError, FileError, ModelError
from cfptq.pipeline.task import QuantizationTask

PRESETS = ("faithful", "ptq", "mixed-ptq", "cf-ptq-calibration", "cf-ptq-allocation", "cf-ptq")


def batches(columns: datasets.Columns, size: int = 200) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(columns.train.split(size), columns.train_labels.split(size), strict=True))


def onnx_logits(path: Path, rows: torch.Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"input": rows.numpy()})[0]


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_gives_a_checked_file_within_the_budget(
    method: str, model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    result = cfptq.calibrate(model, batches(columns), action_set, method=method, budget=4.0)
    assert result.plan.average_bits <= 4.0
    assert result.plan.method == method
    result.to_onnx(tmp_path / "model.onnx", check=True)
    exported = onnx.load(tmp_path / "model.onnx")
    # A packed file has the channels in its own order, without dropped ones.
    for layer in order_for_file(result.network, result.plan).layers:
        assert np.array_equal(read_integers(exported, layer.name), layer.integers.numpy())
    with torch.no_grad():
        expected = result.module()(columns.test).numpy()
    close = np.abs(onnx_logits(tmp_path / "model.onnx", columns.test) - expected).max(axis=1) <= 1e-3
    assert close.mean() >= 0.999


def test_calibrate_leaves_the_model_and_the_process_as_they_were(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet
) -> None:
    subject = copy.deepcopy(model).train()
    first = next(subject.parameters())
    first.grad = torch.ones_like(first)
    state = {name: value.clone() for name, value in subject.state_dict().items()}
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    cfptq.calibrate(subject, batches(columns), action_set)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert all(module.training for module in subject.modules())
    assert all(torch.equal(value, state[name]) for name, value in subject.state_dict().items())
    assert first.grad is not None and torch.equal(first.grad, torch.ones_like(first))
    assert all(p.requires_grad for p in subject.parameters())


def test_the_same_seed_gives_the_same_bytes_and_batching_does_not_matter(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    for name, size in (("a", 200), ("b", 37)):
        cfptq.calibrate(model, batches(columns, size), action_set, max_rows=500, seed=3).to_onnx(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    cfptq.calibrate(model, batches(columns), action_set, max_rows=500, seed=4).to_onnx(tmp_path / "c.onnx")
    assert (tmp_path / "c.onnx").read_bytes() != (tmp_path / "a.onnx").read_bytes()


def test_a_saved_result_exports_the_same_file_without_the_original_model(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    result = cfptq.calibrate(model, batches(columns), action_set)
    result.save(tmp_path / "plan")
    again = cfptq.load(tmp_path / "plan")
    result.to_onnx(tmp_path / "before.onnx")
    again.to_onnx(tmp_path / "after.onnx", check=True)
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()
    assert again.bits == result.bits
    assert again.sensitivity == result.sensitivity
    assert again.allocation == result.allocation
    assert again.teacher is not None and result.teacher is not None
    assert torch.equal(again.teacher.points, result.teacher.points)
    with torch.no_grad():
        assert torch.equal(again.prepared_model()(columns.test), result.prepared_model()(columns.test))


def test_people_can_be_left_out_of_what_is_saved(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    cfptq.calibrate(model, batches(columns), action_set).save(tmp_path / "plan", rows=False)
    assert not list((tmp_path / "plan").glob("calibration*")) and not list((tmp_path / "plan").glob("teacher*"))
    again = cfptq.load(tmp_path / "plan")
    assert again.calibration is None and again.teacher is None
    again.to_onnx(tmp_path / "model.onnx", check=True)


SAVED = ("result.json", "plan.json", "plan.safetensors", "calibration.safetensors", "network/network.json", "network/network.safetensors")


@pytest.mark.parametrize("file", SAVED)
@pytest.mark.parametrize("damage", ["cut", "pickle"])
def test_a_damaged_result_is_refused(
    file: str, damage: str, model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    cfptq.calibrate(model, batches(columns), action_set, max_rows=200).save(tmp_path / "plan")
    content = (tmp_path / "plan" / file).read_bytes()
    hostile = b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    (tmp_path / "plan" / file).write_bytes(content[: len(content) // 2] if damage == "cut" else hostile)
    with pytest.raises(FileError):
        cfptq.load(tmp_path / "plan")
    assert not (tmp_path / "owned").exists()


def test_a_result_is_saved_over_an_earlier_one_and_over_nothing_else(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cfptq.calibrate(model, batches(columns), action_set, max_rows=200)
    result.save(tmp_path / "plan")
    result.save(tmp_path / "plan", rows=False)
    assert cfptq.load(tmp_path / "plan").calibration is None
    (tmp_path / "plan" / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match=r"other files \(thesis.txt\). Give a new or empty folder"):
        result.save(tmp_path / "plan")
    assert (tmp_path / "plan" / "thesis.txt").read_text() == "mine" and cfptq.load(tmp_path / "plan").calibration is None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="Give a new folder in it"):
        result.save(".")
    with pytest.raises(FileError, match=r"it is a file\. Give a new or empty folder"):
        result.save("plan/thesis.txt")


def test_a_result_that_was_changed_after_it_was_saved_is_refused(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    result = cfptq.calibrate(model, batches(columns), action_set, max_rows=200)
    result.save(tmp_path / "plan")
    tensors, told = tmp_path / "plan" / "plan.safetensors", tmp_path / "plan" / "result.json"
    whole, head = tensors.read_bytes(), json.loads(told.read_text())
    last = f"{result.plan.layers[-1].name}.integers"
    tensors.write_bytes(save_tensors({name: -tensor if name == last else tensor for name, tensor in load_tensors(whole).items()}))
    with pytest.raises(FileError, match=r"plan\.safetensors was changed"):
        cfptq.load(tmp_path / "plan")
    tensors.write_bytes(whole)
    others = [2 if bits == 8 else 8 for bits in head["allocation"]["bits"]]
    for change in ({"allocation": head["allocation"] | {"bits": others}}, {"threshold": float("nan")}, {"threshold": "0.5"}):
        told.write_text(json.dumps(head | change))
        with pytest.raises(FileError, match=r"result\.json"):
            cfptq.load(tmp_path / "plan")
    told.write_text(json.dumps(head))
    cfptq.load(tmp_path / "plan")


def test_every_file_of_a_saved_result_is_the_one_that_was_saved(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        cfptq.calibrate(model, batches(columns), action_set, max_rows=200, seed=seed, progress=False).save(tmp_path / name)
    told = tmp_path / "a" / "result.json"
    content = json.loads(told.read_text())
    changes: tuple[dict[str, Any], ...] = ({"head": "logit"}, {"threshold": 0.9}, {"tensor_names": ["a"]}, {"files": {}}, {"note": 1})
    without_digest = {key: value for key, value in content.items() if key != "digest"}
    for text in (*(json.dumps(content | change) for change in changes), json.dumps(without_digest), "[" * 10_000, "[]"):
        told.write_text(text)
        with pytest.raises(FileError, match=r"result\.json"):
            cfptq.load(tmp_path / "a")
    told.write_text(json.dumps(content))
    for name in ("calibration.safetensors", "teacher.safetensors", "plan.json"):
        kept = (tmp_path / "a" / name).read_bytes()
        for replacement in ((tmp_path / "b" / name).read_bytes(), kept + b" ", None):
            (tmp_path / "a" / name).unlink()
            if replacement is not None:
                (tmp_path / "a" / name).write_bytes(replacement)
            with pytest.raises(FileError, match=name):
                cfptq.load(tmp_path / "a")
            (tmp_path / "a" / name).write_bytes(kept)
    cfptq.load(tmp_path / "a")


def test_wrong_and_misspelt_arguments_are_named(model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path) -> None:
    rows, start = batches(columns), (model, batches(columns))
    result = cfptq.calibrate(model, rows, action_set, max_rows=100, progress=False)
    calls: dict[str, Callable[[], Any]] = {
        "max_rows must be a whole number": lambda: cfptq.calibrate(*start, action_set, max_rows="5"),  # type: ignore[arg-type]
        "portable must be True or False": lambda: cfptq.calibrate(*start, action_set, portable="no"),  # type: ignore[arg-type]
        r"layers\['0'\] must be": lambda: cfptq.calibrate(*start, action_set, layers={"0": "8"}),  # type: ignore[dict-item]
        "did you mean 'budget'": lambda: cfptq.calibrate(*start, action_set, budgett=4),  # type: ignore[call-arg]
        "did you mean 'faithful'": lambda: cfptq.calibrate(*start, action_set, method="faithfull"),
        "did you mean 'logits'": lambda: cfptq.calibrate(*start, action_set, head="logitss"),
        "calibration_rows must be": lambda: cfptq.qat(*start, action_set, calibration_rows=0),
        "log must be the path": lambda: cfptq.qat(*start, action_set, log=5),  # type: ignore[arg-type]
        "methods must be": lambda: cfptq.compare(model, rows, rows, action_set, methods=5),  # type: ignore[arg-type]
        "protocol must be": lambda: cfptq.audit(model, model, columns.test, action_set, protocol=5),  # type: ignore[arg-type]
        "people must be": lambda: cfptq.audit(model, model, None, action_set),  # type: ignore[arg-type]
        "groups must be": lambda: cfptq.audit(model, model, columns.test, action_set, groups=5),  # type: ignore[arg-type]
        "max_accuracy_drop must be": lambda: cfptq.tuning_score(*start, action_set, max_accuracy_drop="x"),  # type: ignore[arg-type]
        "folder must be the path": lambda: cfptq.load(None),  # type: ignore[arg-type]
        "path must be the path": lambda: result.to_onnx(None),  # type: ignore[arg-type]
        "storage must be": lambda: result.to_onnx(tmp_path / "model.onnx", storage="tight"),  # type: ignore[arg-type]
        "rows must be True or False": lambda: result.save(tmp_path / "plan", rows=None),  # type: ignore[arg-type]
        "action_set must be": lambda: cfptq.recourse.solve(model, columns.test, None, target=1),  # type: ignore[arg-type]
        "chunk_rows must be": lambda: cfptq.recourse.solve(model, columns.test, action_set, target=1, chunk_rows="5"),  # type: ignore[arg-type]
        "method must be": lambda: cfptq.recourse.solve(model, columns.test, action_set, target=1, method=["exact"]),  # type: ignore[arg-type]
    }
    for told, call in calls.items():
        with pytest.raises(CfptqError, match=told):
            call()
    assert not list(tmp_path.iterdir())


def test_a_network_and_a_plan_that_do_not_belong_together_are_refused(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    other = models.MLP(columns.train.shape[1], 2, hidden=(32, 16), seed=1)
    for name, subject in (("a", model), ("b", other)):
        cfptq.calibrate(subject, batches(columns), action_set, method="mixed-ptq").save(tmp_path / name)
    for part in ("network.json", "network.safetensors"):
        (tmp_path / "a" / "network" / part).write_bytes((tmp_path / "b" / "network" / part).read_bytes())
    with pytest.raises(FileError, match=r"network\.json was changed"):
        cfptq.load(tmp_path / "a")


def test_callers_without_gradients_get_the_same_plan(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    digests = set()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            digests.add(cfptq.calibrate(model, [columns.train[:600]], action_set, progress=False).plan.digest)
    assert len(digests) == 1


def test_a_pinned_layer_keeps_its_width(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    name = next(iter(cfptq.calibrate(model, batches(columns), action_set).bits))
    assert cfptq.calibrate(model, batches(columns), action_set, layers={name: 3}).bits[name] == (3,) * 32
    with pytest.raises(CfptqError, match="nowhere"):
        cfptq.calibrate(model, batches(columns), action_set, layers={"nowhere": 3})


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"layers": {"nowhere": 3}}, "nowhere"),
        ({"groups": "sexx"}, "sexx"),
        ({"budget": 1.5}, "cannot be met"),
        ({"groups": lambda rows: ["a"]}, "1 labels"),
    ],
)
def test_what_cannot_be_met_is_refused_before_the_work(
    request_: dict[str, Any],
    told: str,
    model: nn.Module,
    columns: datasets.Columns,
    action_set: ActionSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(QuantizationTask, "score_layers", work)
    with pytest.raises(CfptqError, match=told):
        cfptq.calibrate(model, batches(columns), action_set, progress=False, **request_)


def test_groups_that_do_not_fit_the_rows_are_refused_before_the_work(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("cfptq.pipeline.comparison.reference_recourse", work)
    with pytest.raises(DataError, match="one per row"):
        cfptq.compare(model, batches(columns), [columns.test], action_set, groups={"sex": ["a", "b"]}, progress=False)


def test_the_fewest_bits_hold_on_people_set_aside(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    loose = cfptq.calibrate(model, batches(columns), action_set, method="mixed-ptq", max_validity_drop=0.5)
    tight = cfptq.calibrate(model, batches(columns), action_set, method="mixed-ptq", max_validity_drop=0.05)
    assert loose.plan.average_bits < tight.plan.average_bits
    for limit, result in ((0.5, loose), (0.05, tight)):
        held = result.fewest_bits
        assert held is not None and held.limit == limit and held.broken / held.people == held.validity_drop <= limit
        assert f"on {held.people} held-out people" in str(result)
        assert ("Too few held-out people" in str(result)) == (held.interval[1] > limit)
    assert loose.fewest_bits is not None and loose.fewest_bits.is_confirmed
    loose.save(tmp_path / "plan")
    assert cfptq.load(tmp_path / "plan").fewest_bits == loose.fewest_bits
    few = cfptq.calibrate(model, [columns.train[:200]], action_set, method="mixed-ptq", max_validity_drop=0.1)
    assert few.fewest_bits is not None and "Too few held-out people" in str(few)
    with pytest.raises(BudgetError, match="the least that any allocation reached"):
        cfptq.calibrate(_untrained(columns), batches(columns), action_set, method="mixed-ptq", max_validity_drop=0.0)


def _untrained(columns: datasets.Columns) -> nn.Module:
    # Random weights put everyone close to the boundary, where no rounding keeps every decision.
    return models.MLP(columns.train.shape[1], 2, hidden=(8,), seed=3)


@pytest.mark.parametrize("head", ["logit", "probability", "probabilities"])
def test_other_heads_give_the_same_plan_as_logits(head: str, model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = copy.deepcopy(model)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.body(x)
            if head == "probabilities":
                return torch.softmax(logits, dim=1)
            logit = logits[:, 1] - logits[:, 0]
            return logit if head == "logit" else torch.sigmoid(logit)[:, None]

    plain = cfptq.calibrate(model, batches(columns), action_set)
    headed = cfptq.calibrate(Headed(), batches(columns), action_set, head=head)
    assert list(headed.bits.values()) == list(plain.bits.values())
    assert headed.teacher is not None and plain.teacher is not None
    assert torch.allclose(headed.teacher.points, plain.teacher.points, atol=1e-3)


def test_a_stricter_threshold_rejects_more_people(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    plain = cfptq.calibrate(model, batches(columns), action_set)
    strict = cfptq.calibrate(model, batches(columns), action_set, threshold=0.8)
    assert plain.teacher is not None and strict.teacher is not None
    assert len(strict.teacher) > len(plain.teacher)


def test_a_frame_of_raw_features_calibrates_like_its_columns(
    people: datasets.Dataset, model: nn.Module, columns: datasets.Columns, action_set: ActionSet
) -> None:
    frames = cfptq.calibrate(model, [people.train.iloc[:1000], people.train.iloc[1000:]], action_set, max_rows=300)
    tensors = cfptq.calibrate(model, columns.train, action_set, max_rows=300)
    assert frames.plan.digest == tensors.plan.digest


# -- what is refused -------------------------------------------------------------------------------------------------------


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2]


def _spoilt(columns: datasets.Columns, row: int, column: int, value: float) -> list[torch.Tensor]:
    rows = columns.train.clone()
    rows[row, column] = value
    return [rows]


def _one_hot_column(action_set: ActionSet) -> int:
    return next(members[0] for members in action_set.feature_columns if len(members) > 1)


REFUSED: dict[str, tuple[Any, type[CfptqError], str]] = {
    "empty loader": (lambda c, a: {"calib_loader": []}, DataError, "no rows"),
    "NaN": (lambda c, a: {"calib_loader": _spoilt(c, 17, 0, float("nan"))}, DataError, "17"),
    "wrong width": (lambda c, a: {"calib_loader": [c.train[:, :-1]]}, CfptqError, "column"),
    "integers for rows": (lambda c, a: {"calib_loader": [c.train.long()]}, DataError, "float"),
    "one-hot rows that are not": (lambda c, a: {"calib_loader": _spoilt(c, 11, _one_hot_column(a), 0.5)}, CfptqError, "11"),
    "budget below the lowest width": (lambda c, a: {"budget": 1.5}, BudgetError, "2"),
    "budget and limit": (lambda c, a: {"budget": 4.0, "max_validity_drop": 0.1}, ConfigurationError, "must not both"),
    "limit out of range": (lambda c, a: {"max_validity_drop": 1.5}, BudgetError, "between 0 and 1"),
    "limit that is no number": (lambda c, a: {"max_validity_drop": "x"}, BudgetError, "between 0 and 1, or None, got 'x'"),
    "layers without bits": (lambda c, a: {"layers": ["head"]}, ConfigurationError, "must map each layer"),
    "a list of groups": (lambda c, a: {"groups": ["a"] * 300}, ConfigurationError, "function from rows .* got a list"),
    "unknown head": (lambda c, a: {"head": "foo"}, ModelError, "foo"),
    "unknown method": (lambda c, a: {"method": "magic"}, ConfigurationError, "magic"),
    "nothing to quantize": (lambda c, a: {"model": Nothing()}, ModelError, "quantiz"),
    "target outside the classes": (lambda c, a: {"target": 7}, CfptqError, "7"),
    "raw action set": (lambda c, a: {"action_set": ActionSet.from_frame(pd.DataFrame({"x": [1.0, 2.0]}))}, ActionSetError, "encoded_by"),
    "not an action set": (lambda c, a: {"action_set": object()}, ActionSetError, "ActionSet"),
    "double precision model": (lambda c, a: {"model": models.MLP(c.train.shape[1], 2, hidden=(4,), seed=0).double()}, ModelError, "float"),
    "impossible activations": (lambda c, a: {"activation_bits": 5}, ModelError, "5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_clear_error_and_changes_nothing(
    case: str, model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    change, error, words = REFUSED[case]
    arguments = {"model": model, "calib_loader": batches(columns), "action_set": action_set, **change(columns, action_set)}
    subject = arguments.pop("model")
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    with pytest.raises(error, match=words):
        cfptq.calibrate(subject, arguments.pop("calib_loader"), arguments.pop("action_set"), **arguments)
    assert all(torch.equal(value, before[name]) for name, value in subject.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, LogisticRegression()], ids=["None", "scikit-learn"])
@pytest.mark.parametrize("call", [cfptq.calibrate, cfptq.qat, cfptq.tuning_score])
def test_what_is_no_model_is_refused(call: Callable[..., Any], given: object, columns: datasets.Columns, action_set: ActionSet) -> None:
    with pytest.raises(ModelError, match=r"nn\.Module, the path of an ONNX file|fitted"):
        call(given, batches(columns), action_set)


@pytest.mark.parametrize("seed", [-1, "a", 1.5, 2**32])
@pytest.mark.parametrize("call", [cfptq.calibrate, cfptq.qat, cfptq.tuning_score, cfptq.compare, cfptq.audit])
def test_a_seed_is_a_whole_number(
    call: Callable[..., Any], seed: object, model: nn.Module, columns: datasets.Columns, action_set: ActionSet
) -> None:
    first = {cfptq.compare: (model, batches(columns), batches(columns)), cfptq.audit: (model, model, columns.test)}
    with pytest.raises(ConfigurationError, match="seed must be"):
        call(*first.get(call, (model, batches(columns))), action_set, seed=seed)


def test_without_a_target_the_error_shows_what_the_model_predicts(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet
) -> None:
    with pytest.raises(DataError, match=r"class 0: \d+.*class 1: \d+"):
        cfptq.calibrate(model, batches(columns), action_set.replace(favourable=None))


def test_people_outside_declared_bounds_are_calibrated_on_and_listed(
    model: nn.Module, columns: datasets.Columns, people: datasets.Dataset
) -> None:
    bounded = ActionSet.from_frame(people.train, immutable=["age"], bounds={"age": (18, 30)}, ordinal=people.ordinal, favourable=1)
    result = cfptq.calibrate(model, columns.train, bounded.encoded_by(columns.encoder), method="ptq", progress=False)
    assert result.calibration is not None and len(result.calibration.rows) == len(columns.train)
    assert len(bounded.validate(people.train)) >= int((people.train["age"] > 30).sum()) > 0


def test_a_file_that_cannot_be_written_leaves_nothing(
    model: nn.Module, columns: datasets.Columns, action_set: ActionSet, tmp_path: Path
) -> None:
    result = cfptq.calibrate(model, batches(columns), action_set)
    with pytest.raises(FileError, match="nowhere"):
        result.to_onnx(tmp_path / "nowhere" / "model.onnx")
    assert not list(tmp_path.iterdir())


# -- compare ---------------------------------------------------------------------------------------------------------------

QUICK = Protocol(max_people=60, resamples=50)


@pytest.fixture(scope="module")
def comparison(model: nn.Module, columns: datasets.Columns, action_set: ActionSet, people: datasets.Dataset) -> Iterator[cfptq.Comparison]:
    yield cfptq.compare(
        model,
        batches(columns),
        [(columns.test, columns.test_labels)],
        action_set,
        methods=("ort-int8", "ort-int4", "mixed-ptq", "cf-ptq"),
        budgets=(4.0, 8.0),
        groups={"sex": people.test["sex"]},
        protocol=QUICK,
        progress=False,
    )


def test_compare_measures_every_method_on_the_same_people(comparison: cfptq.Comparison) -> None:
    assert list(comparison.methods) == ["ort-int8", "ort-int4", "mixed-ptq", "cf-ptq"]
    assert list(comparison.budgets) == ["4.0", "8.0"]
    assert len({entry["counts"]["people"] for entry in comparison.methods.values()}) == 1
    for entry in comparison.methods.values():
        assert set(entry["validity_drop_at"]) == {"0.50", "0.55", "0.60"}
        assert entry["stored_bytes"] > 0 and 0 <= entry["validity_drop"] <= 1
    assert comparison.methods["cf-ptq"]["average_bits"] <= 4.0
    assert comparison.methods["ort-int8"]["stored_bytes"] > comparison.methods["cf-ptq"]["stored_bytes"]
    assert comparison.budgets["8.0"]["ort-int8"] == comparison.budgets["4.0"]["ort-int8"]


def test_print_shows_the_tables(comparison: cfptq.Comparison) -> None:
    lines = str(comparison).splitlines()
    assert max(map(len, lines)) <= 120
    for name, entry in comparison.methods.items():
        (row, *_) = [line for line in lines if name in line.split() and f"{entry['validity_drop']:.3f}" in line]
        assert f"{entry['favourable_rate_drift']:.4f}".lstrip("-+") in row
    assert str(comparison).count("recourse after quantization") == 2 and "batch 4096" in str(comparison)


def test_results_are_the_same_bytes_again(
    comparison: cfptq.Comparison,
    model: nn.Module,
    columns: datasets.Columns,
    action_set: ActionSet,
    people: datasets.Dataset,
    tmp_path: Path,
) -> None:
    again = cfptq.compare(
        model, batches(columns, 91), [(columns.test, columns.test_labels)], action_set,
        methods=("ort-int8", "ort-int4", "mixed-ptq", "cf-ptq"), budgets=(4.0, 8.0), groups={"sex": people.test["sex"]},
        protocol=QUICK, progress=False,
    )  # fmt: skip
    comparison.to_json(tmp_path / "a.json")
    again.to_json(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_an_unknown_method_is_refused_before_anything_runs(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    with pytest.raises(ConfigurationError, match="ort-int3"):
        cfptq.compare(model, [], [], action_set, methods=("ort-int3",))


@pytest.mark.parametrize("budgets", ["x", ["x"], None, [cfptq.Budget.bytes(9000)]])
def test_budgets_that_are_no_numbers_are_refused_before_anything_runs(
    budgets: Any, model: nn.Module, columns: datasets.Columns, action_set: ActionSet
) -> None:
    with pytest.raises(BudgetError, match="must be a number of average bits"):
        cfptq.compare(model, [], [], action_set, budgets=budgets)


def test_one_method_and_one_budget_may_stand_alone(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    comparison = cfptq.compare(
        model, batches(columns), columns.test, action_set, methods="mixed-ptq", budgets=4, protocol=QUICK, progress=False
    )
    assert list(comparison.budgets) == ["4.0"] and list(comparison.methods) == ["mixed-ptq"]


def test_one_grouping_may_stand_alone(people: datasets.Dataset, model: nn.Module, action_set: ActionSet) -> None:
    one, listed = (
        cfptq.audit(model, model, people.test, action_set, groups=groups, protocol=QUICK, progress=False) for groups in ("sex", ["sex"])
    )
    assert one.to_dict() == listed.to_dict()
