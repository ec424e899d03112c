"""Modules, ONNX files and functions answer through one protocol, and what does not fit is refused with its mend."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cfptq.errors import DataError, FileError, ModelError, ModelWarning
from cfptq.network.head import Head, decide
from cfptq.network.onnx.operators import OPERATORS
from cfptq.network.predictor import ArtefactPredictor, Predictor, as_predictor, choose_outputs, find_recorded_threshold


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def network(outputs: int = 2, *after: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, outputs), *after)


def onnx_model(outputs: int = 2, after: str = "", batch: Any = "N", kind: int = TensorProto.FLOAT, extra: bool = False) -> onnx.ModelProto:
    """A linear classifier of five columns, perhaps with a last operator, a fixed batch or a second output."""
    rng = np.random.default_rng(0)
    dtype = np.float64 if kind == TensorProto.DOUBLE else np.float32
    held = [
        numpy_helper.from_array(rng.normal(size=(outputs, 5)).astype(dtype), "w"),
        numpy_helper.from_array(rng.normal(size=outputs).astype(dtype), "b"),
        numpy_helper.from_array(np.array([batch if isinstance(batch, int) else -1, 5], dtype=np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["x"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["z" if after else "output"], transB=1),
    ]
    if after:
        nodes.append(helper.make_node(after, ["z"], ["output"]))
    answers = [helper.make_tensor_value_info("output", kind, [batch, outputs])]
    if extra:
        nodes.append(helper.make_node("ArgMax", ["output"], ["label"], axis=1, keepdims=0))
        answers.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [batch]))
    graph = helper.make_graph(nodes, "classifier", [helper.make_tensor_value_info("input", kind, [batch, 5])], answers, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


# What a file records, and what it cannot promise ----------------------------------------------------------------------------


def recorded(outputs: int = 2, **entries: str) -> onnx.ModelProto:
    model = onnx_model(outputs)
    helper.set_model_props(model, {f"cfptq.{key}": value for key, value in entries.items()})
    return model


def test_a_file_is_read_with_the_head_and_threshold_that_it_records() -> None:
    x = rows(64)
    plain, told = as_predictor(onnx_model(1), example=x), as_predictor(recorded(1, head="logit", threshold="0.8"), example=x)
    assert isinstance(told, ArtefactPredictor) and (told.head, told.threshold) == (Head.LOGIT, 0.8)
    assert torch.allclose(told.logits(x)[:, 1], plain.logits(x)[:, 1] - np.log(4), atol=1e-5)
    given = as_predictor(recorded(1, head="logit", threshold="0.8"), example=x, threshold=0.5)
    assert torch.equal(given.logits(x), plain.logits(x))


@pytest.mark.parametrize("entries", [{"head": "logitz"}, {"threshold": "much"}, {"threshold": "1.5"}])
def test_a_record_that_makes_no_sense_is_refused_by_its_keys(entries: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"cfptq\.head and cfptq\.threshold"):
        as_predictor(recorded(2, **entries), example=rows(8))


def test_models_that_are_compared_decide_at_the_one_threshold_that_a_file_records() -> None:
    with pytest.warns(ModelWarning, match=r"0\.8"):
        assert find_recorded_threshold(network(), recorded(threshold="0.8")) == 0.8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_recorded_threshold(recorded(threshold="0.8"), recorded(threshold="0.8")) == 0.8
        assert find_recorded_threshold(network(), recorded(threshold="")) is None
        assert find_recorded_threshold(network(), network()) is None
    for other in ("0.6", ""):
        with pytest.raises(ModelError, match="threshold="):
            find_recorded_threshold(recorded(threshold="0.8"), recorded(threshold=other))


def test_an_output_is_read_in_the_files_that_have_it() -> None:
    assert choose_outputs("label", network(), onnx_model(extra=True)) == [None, "label"]
    assert choose_outputs(None, network()) == [None]
    with pytest.raises(ModelError, match="label, output"):
        choose_outputs("scores", onnx_model(extra=True))


def test_answers_that_depend_on_the_batch_are_told() -> None:
    def centred(x: Any) -> Any:
        return (x - x.mean(axis=0))[:, :2]

    with pytest.warns(ModelWarning, match="alone"):
        as_predictor(centred, example=rows(64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_predictor(onnx_model(), example=rows(64))


def test_separate_labels_are_not_taken_for_classes() -> None:
    labels, x = network(3, nn.Sigmoid()), rows(64)
    with pytest.raises(ModelError, match="do not sum to 1"):
        as_predictor(labels, example=x)
    assert as_predictor(labels, example=x, head="logits").n_classes == 3
    assert as_predictor(network(3, nn.Softmax(dim=1)), example=x).n_classes == 3


# Modules -------------------------------------------------------------------------------------------------------------------


def test_a_module_in_training_mode_answers_as_in_eval_mode_and_stays_in_training_mode() -> None:
    model, x = network(), rows(64)
    statistics = model[1].running_mean.clone()
    predictor = as_predictor(model, example=x)
    assert isinstance(predictor, Predictor)
    assert (predictor.n_classes, predictor.is_differentiable, predictor.name) == (2, True, "Sequential")
    answer = predictor.logits(x)
    assert all(module.training for module in model.modules())
    assert torch.equal(model[1].running_mean, statistics)
    assert not answer.requires_grad
    assert torch.equal(answer, model.eval()(x).detach())
    assert torch.equal(predictor.surrogate(x).detach(), answer)


def test_the_surrogate_has_the_gradient_of_the_model() -> None:
    model, x = network().eval(), rows(8).requires_grad_()
    (gradient,) = torch.autograd.grad(as_predictor(model, example=rows(8)).surrogate(x)[:, 1].sum(), x)
    (expected,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(
    ("outputs", "after", "head"),
    [
        (2, (), Head.LOGITS),
        (3, (nn.Softmax(1),), Head.PROBABILITIES),
        (1, (), Head.LOGIT),
        (1, (nn.Flatten(0),), Head.LOGIT),
        (1, (nn.Sigmoid(),), Head.PROBABILITY),
        (1, (nn.Sigmoid(), nn.Flatten(0)), Head.PROBABILITY),
    ],
)
def test_every_head_gives_the_decisions_of_its_model(outputs: int, after: tuple[nn.Module, ...], head: Head) -> None:
    model, x = network(outputs, *after).eval(), rows(200)
    predictor = as_predictor(model, example=x)
    assert isinstance(predictor, ArtefactPredictor)
    assert predictor.head is head
    raw = model(x)
    threshold = 0.0 if head is Head.LOGIT else 0.5
    expected = raw.argmax(1) if raw.dim() == 2 and raw.shape[1] > 1 else (raw.reshape(-1) > threshold).long()
    assert torch.equal(decide(predictor.logits(x)), expected)


def test_small_logits_are_not_mistaken_for_probabilities() -> None:
    model = nn.Linear(5, 1)
    with torch.no_grad():
        model.weight.fill_(1e-3)
        model.bias.fill_(0.5)
    predictor = as_predictor(model, example=rows(20))
    assert isinstance(predictor, ArtefactPredictor)
    assert predictor.head is Head.LOGIT


def test_a_threshold_moves_the_decision() -> None:
    model, x = network(1, nn.Sigmoid()).eval(), rows(200)
    predictor = as_predictor(model, example=x, threshold=0.7)
    assert torch.equal(decide(predictor.logits(x)), (model(x)[:, 0] > 0.7).long())


def test_a_model_that_writes_into_its_input_leaves_the_rows_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 2))
    x = rows(6)
    before = x.clone()
    as_predictor(model, example=x).logits(x)
    assert torch.equal(x, before)


def test_another_dtype_is_the_model_s_own_affair() -> None:
    model, x = network().double().eval(), rows(6).requires_grad_()
    predictor = as_predictor(model, example=rows(6))
    assert predictor.logits(x.detach()).dtype == torch.float32
    predictor.surrogate(x).sum().backward()
    assert x.grad is not None


def test_long_tables_are_answered_in_parts_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, x = as_predictor(network(), example=rows(4)), rows(100)
    whole = predictor.logits(x)
    monkeypatch.setattr("cfptq.network.predictor.CHUNK_ROWS", 33)
    assert torch.allclose(predictor.logits(x), whole, atol=1e-6)


def test_exported_programs_are_models_too() -> None:
    model = nn.Linear(5, 3)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (rows(4),), dynamic_shapes=({0: batch},))
    predictor = as_predictor(program, example=rows(4))
    assert torch.allclose(predictor.logits(rows(7)), model(rows(7)), atol=1e-6)


# ONNX files ----------------------------------------------------------------------------------------------------------------


def test_an_onnx_file_is_run_by_onnx_runtime_and_has_a_twin(tmp_path: Path) -> None:
    path, x = tmp_path / "classifier.onnx", rows(50)
    onnx.save(onnx_model(), path)
    predictor = as_predictor(path, example=x)
    assert (predictor.name, predictor.n_classes, predictor.is_differentiable) == ("classifier.onnx", 2, True)
    weight, bias = (torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer[:2])
    assert torch.allclose(predictor.logits(x), x @ weight.T + bias, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(predictor.surrogate(leaf)[:, 1].sum(), leaf)
    assert torch.allclose(gradient, weight[1].expand_as(gradient))


@pytest.mark.parametrize(
    ("outputs", "after", "head"), [(3, "Softmax", Head.PROBABILITIES), (1, "Sigmoid", Head.PROBABILITY), (1, "", Head.LOGIT)]
)
def test_the_head_of_an_onnx_file_is_seen(outputs: int, after: str, head: Head) -> None:
    predictor = as_predictor(onnx_model(outputs, after), example=rows(50))
    assert isinstance(predictor, ArtefactPredictor)
    assert predictor.head is head
    assert torch.allclose(predictor.logits(rows(9)), predictor.surrogate(rows(9)), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_exported_for_a_fixed_batch_takes_any_number_of_rows(batch: int) -> None:
    free, fixed = (as_predictor(onnx_model(batch=b), example=rows(10)) for b in ("N", batch))
    for count in (1, 3, 4, 10):
        assert torch.allclose(fixed.logits(rows(count)), free.logits(rows(count)), atol=1e-6)
        assert torch.allclose(fixed.surrogate(rows(count)), free.logits(rows(count)), atol=1e-6)


def test_a_double_precision_file_and_a_label_output_are_understood() -> None:
    assert torch.allclose(
        as_predictor(onnx_model(kind=TensorProto.DOUBLE), example=rows(10)).logits(rows(3)),
        as_predictor(onnx_model(extra=True), example=rows(10)).logits(rows(3)),
        atol=1e-6,
    )


def test_an_operator_without_a_twin_leaves_the_answers_and_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPERATORS, ("", "Hardmax"))
    predictor = as_predictor(onnx_model(after="Hardmax"), example=rows(10), head="logits")
    assert predictor.logits(rows(4)).shape == (4, 2)
    assert not predictor.is_differentiable
    with pytest.raises(ModelError, match="no gradient: Cannot convert the ONNX operators Hardmax"):
        predictor.surrogate(rows(4))


def test_a_given_twin_stands_in_for_the_gradient() -> None:
    twin = nn.Linear(5, 1)
    predictor = as_predictor(onnx_model(after="Hardmax"), example=rows(10), head="logits", twin=nn.Sequential(twin, nn.Flatten(0)))
    assert predictor.is_differentiable
    assert torch.allclose(predictor.surrogate(rows(4))[:, 1], twin(rows(4))[:, 0], atol=1e-6)


def test_a_file_for_other_columns_is_refused_with_both_shapes() -> None:
    with pytest.raises(ModelError, match=r"5.*\[10, 3\]"):
        as_predictor(onnx_model(), example=torch.randn(10, 3))


def test_an_output_can_be_named_and_must_exist() -> None:
    as_predictor(onnx_model(extra=True), example=rows(10), output="output")
    with pytest.raises(ModelError, match="got 'scores'"):
        as_predictor(onnx_model(), example=rows(10), output="scores")


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".pkl", ".joblib"])
def test_files_that_unpickle_are_refused_unread(tmp_path: Path, ending: str) -> None:
    with pytest.raises(FileError, match="unpickles"):
        as_predictor(tmp_path / f"model{ending}", example=rows(2))


# Functions -----------------------------------------------------------------------------------------------------------------


def test_a_function_of_arrays_answers_but_has_no_gradient() -> None:
    def scores(x: Any) -> Any:
        assert isinstance(x, np.ndarray) and x.dtype == np.float32
        x += 1
        return np.stack([x[:, 0], x[:, 1], x[:, 2]], 1).astype(np.float64)

    x = rows(6)
    predictor = as_predictor(scores, example=x)
    assert (predictor.name, predictor.n_classes, predictor.is_differentiable) == ("scores", 3, False)
    assert torch.allclose(predictor.logits(x), x[:, :3] + 1)
    with pytest.raises(ModelError, match="has no gradient: it is a Python function"):
        predictor.surrogate(x)


def test_a_function_of_tensors_is_called_with_tensors() -> None:
    model = network().eval()
    predictor = as_predictor(lambda x: model(x), example=rows(6), twin=model)
    assert torch.equal(predictor.logits(rows(6)), model(rows(6)).detach())
    assert predictor.is_differentiable


def test_infinite_log_probabilities_become_finite_logits() -> None:
    predictor = as_predictor(lambda x: np.where(np.stack([x[:, 0] > 0, x[:, 0] <= 0], 1), 0, -np.inf), example=rows(9))
    assert torch.isfinite(predictor.logits(rows(9))).all()
    assert torch.equal(decide(predictor.logits(rows(9))), (rows(9)[:, 0] <= 0).long())


def test_a_predictor_is_returned_as_it_is_unless_told_otherwise() -> None:
    predictor = as_predictor(network(), example=rows(4))
    assert as_predictor(predictor, example=rows(4)) is predictor
    with pytest.raises(ModelError, match="which has its own"):
        as_predictor(predictor, example=rows(4), threshold=0.3)


# What is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 5, dtype=torch.long), torch.zeros(5), torch.zeros(0, 5), torch.full((2, 5), float("nan"))], ids=str
)
def test_rows_that_cannot_be_used_are_data_errors(x: Tensor) -> None:
    predictor = as_predictor(network(), example=rows(4))
    with pytest.raises(DataError):
        predictor.logits(x)
    with pytest.raises(DataError):
        as_predictor(network(), example=x)


def test_nan_answers_name_their_rows() -> None:
    model = nn.Linear(5, 2)
    predictor = as_predictor(lambda x: np.where(x[:, :2] > 0, x[:, :2], x[:, :2] * np.where(x[:, :1] > 9, np.nan, 1)), example=rows(4))
    x = rows(4)
    x[2, :2] = torch.tensor([10.0, -1.0])
    with pytest.raises(ModelError, match=r"NaN for rows 2\."):
        predictor.logits(x)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        as_predictor(model, example=rows(4))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.LSTM(5, 2), "got tuple"),
        (nn.Linear(4, 2), "fails on rows"),
        (nn.Unflatten(1, (5, 1)), "shape"),
        (lambda x: "yes", "fails on rows"),
        (lambda x: np.zeros((3, 2)), "class logits"),
        (7, "must be an nn.Module"),
    ],
)
def test_models_that_do_not_classify_rows_are_refused(model: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        as_predictor(model, example=rows(4))


def test_heads_and_thresholds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="got 'sigmoid'"):
        as_predictor(network(), example=rows(4), head="sigmoid")
    with pytest.raises(ModelError, match="needs an output"):
        as_predictor(network(3), example=rows(4), head=Head.LOGIT)
    with pytest.raises(ModelError, match="two classes"):
        as_predictor(network(3), example=rows(4), threshold=0.5)


def test_a_model_that_fails_on_later_rows_says_so_itself() -> None:
    table = nn.Embedding(3, 2)
    predictor = as_predictor(lambda x: table(torch.as_tensor(x)[:, 0].long()), example=torch.tensor([[0.0], [2.0]]))
    with pytest.raises(ModelError, match="fails on rows of shape"):
        predictor.logits(torch.tensor([[7.0]]))
