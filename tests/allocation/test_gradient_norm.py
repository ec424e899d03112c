"""Gradient scores against autograd, one row and one layer at a time on the user's own module."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cfptq.allocation import LayerScores, Score, compute_gradient_norms, score_by_counterfactual_gradient, score_by_factual_gradient
from cfptq.allocation import per_row_gradients as gradient_module
from cfptq.calibration import CalibrationSet
from cfptq.errors import DataError, ModelError
from cfptq.network import DecisionRule, Head, Network, capture
from cfptq.network.serialize import digest

CLASSES = 3


class Sequence(nn.Module):
    """Linear layers on (N, T, features), summed over the positions at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(x))).sum(1)


class Merged(nn.Module):
    """Rows and positions merged into one axis before the layer, as vision transformers do."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.out = nn.Linear(6, CLASSES)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            h = torch.relu(self.inner(x.transpose(0, 1)))
            return self.out(h.sum(0))
        h = torch.relu(self.inner(x.reshape(-1, 4)))
        return self.out(h.reshape(-1, 5, 6).sum(1))


class Residual(nn.Module):
    """Two branches fed by one tensor, one of them gated by a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.left(x)) * torch.sigmoid(self.right(x)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def batch_norm_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, CLASSES),
    )


def conv2d() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, (2, 3), stride=(1, 2), groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


MODELS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (mlp, (5,)),
    (batch_norm_mlp, (5,)),
    (Residual, (5,)),
    (conv1d, (2, 10)),
    (conv2d, (2, 6, 8)),
    (Sequence, (5, 4)),
    (lambda: Merged(transposed=False), (5, 4)),
    (lambda: Merged(transposed=True), (5, 4)),
]
IDS = ["mlp", "batch-norm", "residual", "conv1d", "conv2d", "sequence", "merged", "transposed"]


@cache
def captured(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Network:
    return capture(trained_like(make), drawn(shape)[0])


def trained_like(make: Callable[[], nn.Module]) -> nn.Module:
    """A model in evaluation mode whose BatchNorm statistics are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
    return model.eval()


def drawn(shape: tuple[int, ...], count: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def one_row_at_a_time(network: Network, rows: Tensor, target: Tensor) -> Tensor:
    """The definition: a backward pass a row, with respect to each layer's weight (BatchNorm folded into it)."""
    norms = []
    for row, y in zip(rows, target, strict=True):
        leaves = {layer.name: network.weight(layer.name).detach().clone().requires_grad_() for layer in network.layers}
        state = {layer.weight: leaves[layer.name] for layer in network.layers}
        output = torch.func.functional_call(network.graph, state, (row.unsqueeze(0),))
        gradients = torch.autograd.grad(cross_entropy(output, y.unsqueeze(0)), list(leaves.values()))
        norms.append([float(gradient.abs().sum()) for gradient in gradients])
    return torch.tensor(norms, dtype=torch.float64)


def calibration(
    rows: Tensor, target: Tensor, origin: list[int], labels: Tensor | None = None, weights: Tensor | None = None
) -> CalibrationSet:
    count = len(rows)
    return CalibrationSet(
        rows=rows,
        origin=torch.tensor(origin, dtype=torch.uint8),
        weights=torch.ones(count) if weights is None else weights,
        source=torch.zeros(count, dtype=torch.int64),
        target=target,
        labels=labels,
        labels_are_teacher=False,
    )


@pytest.mark.parametrize(("make", "shape"), MODELS, ids=IDS)
@pytest.mark.parametrize("chunk_rows", [1024, 5, 2])
def test_norms_are_those_of_each_row_alone(make: Callable[[], nn.Module], shape: tuple[int, ...], chunk_rows: int) -> None:
    rows, target = drawn(shape)
    network = captured(make, shape)
    assert len(network.layers) >= 2
    norms = compute_gradient_norms(network, rows, target, decision=DecisionRule(Head.LOGITS), chunk_rows=chunk_rows)
    assert norms.shape == (len(rows), len(network.layers))
    torch.testing.assert_close(norms, one_row_at_a_time(network, rows, target), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("make", "shape"), [MODELS[3], MODELS[4], MODELS[5]], ids=["conv1d", "conv2d", "sequence"])
def test_the_gradients_held_at_one_time_are_bounded_and_change_nothing(
    make: Callable[[], nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, target = drawn(shape)
    network = captured(make, shape)
    whole = compute_gradient_norms(network, rows, target, decision=DecisionRule(Head.LOGITS))
    monkeypatch.setattr(gradient_module, "MAX_HELD_NUMBERS", 60)
    torch.testing.assert_close(
        compute_gradient_norms(network, rows, target, decision=DecisionRule(Head.LOGITS)), whole, rtol=1e-6, atol=1e-9
    )


def test_a_score_is_the_mean_of_norms_and_not_the_norm_of_the_mean() -> None:
    # Two rows that pull the weight in opposite directions: the batch's gradient vanishes, the layer still matters.
    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
    rows = torch.tensor([[9.0], [1.0], [-1.0]])
    network = capture(model.eval(), rows)
    target = torch.tensor([1, 1, 1])
    # softmax is (1/2, 1/2): the gradient in (W_0, W_1) is x * (1/2, -1/2), of l1 norm 1 in each row.
    scores = score_by_counterfactual_gradient(network, calibration(rows, target, [0, 1, 1]), decision=DecisionRule(Head.LOGITS))
    assert scores.scores == (1.0,)


def test_counterfactual_scores_look_at_recourse_points_and_their_targets_alone() -> None:
    rows, target = drawn((5,), count=6)
    network = captured(mlp, (5,))
    scores = score_by_counterfactual_gradient(network, calibration(rows, target, [0, 0, 0, 1, 1, 1]), decision=DecisionRule(Head.LOGITS))
    expected = one_row_at_a_time(network, rows[3:], target[3:]).mean(0)
    torch.testing.assert_close(torch.tensor(scores.scores, dtype=torch.float64), expected, rtol=1e-4, atol=0)
    assert scores.names == tuple(layer.name for layer in network.layers)
    assert scores.parameters == (40, 56, 21)
    assert scores.kind == "counterfactual gradient"


def test_rows_count_by_their_calibration_weights() -> None:
    rows, target = drawn((5,), count=4)
    network = captured(mlp, (5,))
    weights = torch.tensor([7.0, 1.0, 0.0, 3.0])
    scores = score_by_counterfactual_gradient(
        network, calibration(rows, target, [0, 1, 1, 1], weights=weights), decision=DecisionRule(Head.LOGITS)
    )
    expected = (one_row_at_a_time(network, rows[1:], target[1:]) * weights[1:, None]).sum(0) / 4
    torch.testing.assert_close(torch.tensor(scores.scores, dtype=torch.float64), expected, rtol=1e-4, atol=0)


def test_factual_scores_use_labels_and_let_the_teacher_stand_in_for_missing_ones() -> None:
    rows, target = drawn((5,), count=6)
    network = captured(mlp, (5,))
    labels = torch.tensor([0, -1, 2, -1, -1, -1])
    scores = score_by_factual_gradient(
        network, calibration(rows, target, [0, 0, 0, 0, 1, 1], labels=labels), decision=DecisionRule(Head.LOGITS)
    )
    decided = network(rows[:4]).argmax(1)
    expected = one_row_at_a_time(network, rows[:4], torch.tensor([0, int(decided[1]), 2, int(decided[3])])).mean(0)
    torch.testing.assert_close(torch.tensor(scores.scores, dtype=torch.float64), expected, rtol=1e-4, atol=0)
    assert "2 missing labels" in scores.note
    unlabelled = score_by_factual_gradient(network, calibration(rows[:4], target[:4], [0, 0, 0, 0]), decision=DecisionRule(Head.LOGITS))
    torch.testing.assert_close(
        torch.tensor(unlabelled.scores, dtype=torch.float64), one_row_at_a_time(network, rows[:4], decided).mean(0), rtol=1e-4, atol=0
    )
    assert "stand in for labels" in unlabelled.note
    teachers = replace(calibration(rows, target, [0, 0, 0, 0, 1, 1], labels=labels), labels_are_teacher=True)
    assert "stand in for labels" in score_by_factual_gradient(network, teachers, decision=DecisionRule(Head.LOGITS)).note


def test_fully_labelled_rows_leave_nothing_to_say() -> None:
    rows, target = drawn((5,), count=4)
    network = captured(mlp, (5,))
    assert (
        score_by_factual_gradient(network, calibration(rows, target, [0] * 4, labels=target), decision=DecisionRule(Head.LOGITS)).note == ""
    )


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_one_logit_models_are_scored_through_their_class_logits(threshold: float | None) -> None:
    rows, target = drawn((5,), count=4)
    target = target.clamp(max=1)
    network = capture(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)).eval(), rows)
    shift = 0.0 if threshold is None else math.log(threshold / (1 - threshold))
    found = compute_gradient_norms(network, rows, target, decision=DecisionRule(Head.LOGIT, threshold))
    weight = network.weight("2").detach().clone().requires_grad_()
    for row, y, norms in zip(rows, target, found, strict=True):
        output = torch.func.functional_call(network.graph, {"2.weight": weight}, (row.unsqueeze(0),))
        loss = nn.functional.binary_cross_entropy_with_logits(output.flatten() - shift, y.float().unsqueeze(0))
        assert float(norms[1]) == pytest.approx(float(torch.autograd.grad(loss, weight)[0].abs().sum()), rel=1e-4)


def test_the_head_is_inferred_from_all_rows_where_it_is_not_given() -> None:
    rows, target = drawn((5,), count=40)
    network = captured(mlp, (5,))
    given = compute_gradient_norms(network, rows, target, decision=DecisionRule(Head.LOGITS))
    assert torch.equal(compute_gradient_norms(network, rows, target, chunk_rows=1024), given)
    soft = capture(nn.Sequential(trained_like(mlp), nn.Softmax(1)).eval(), rows)
    torch.testing.assert_close(compute_gradient_norms(soft, rows, target), given, rtol=1e-3, atol=1e-6)


def test_scoring_changes_neither_the_network_nor_the_random_state_nor_needs_gradients_enabled() -> None:
    rows, target = drawn((5,))
    network = captured(mlp, (5,))
    before, state = digest(network), torch.get_rng_state()
    with torch.no_grad():
        off = compute_gradient_norms(network, rows, target)
    assert torch.equal(off, compute_gradient_norms(network, rows, target))
    assert digest(network) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.graph.parameters())


def test_a_user_may_pass_a_score_of_her_own() -> None:
    def by_size(
        network: Network, calibration: CalibrationSet, *, decision: DecisionRule | None = None, progress: bool = True
    ) -> LayerScores:
        return LayerScores(("a",), (3,), (1.5,), "size")

    score: Score = by_size
    assert score(None, None).benefits((2, 8)) == ((3.0, 12.0),)  # type: ignore[arg-type]


class TestRefusals:
    def test_no_rows(self) -> None:
        rows, target = drawn((5,))
        network = captured(mlp, (5,))
        with pytest.raises(DataError, match="no rows"):
            compute_gradient_norms(network, rows[:0], target[:0])
        with pytest.raises(DataError, match="one class index per row"):
            compute_gradient_norms(network, rows, target[:2])

    def test_no_counterfactual_points(self) -> None:
        rows, target = drawn((5,))
        network = captured(mlp, (5,))
        with pytest.raises(DataError, match="no counterfactual points"):
            score_by_counterfactual_gradient(network, calibration(rows, target, [0] * 5))

    def test_counterfactual_points_that_weigh_nothing(self) -> None:
        rows, target = drawn((5,), count=2)
        network = captured(mlp, (5,))
        with pytest.raises(DataError, match="have weight 0"):
            score_by_counterfactual_gradient(network, calibration(rows, target, [0, 1], weights=torch.tensor([1.0, 0.0])))

    def test_labels_that_are_no_class(self) -> None:
        rows, target = drawn((5,))
        network = captured(mlp, (5,))
        with pytest.raises(DataError, match=r"3 classes.*rows 1, 3 are not"):
            score_by_factual_gradient(network, calibration(rows, target, [0] * 5, labels=torch.tensor([0, 3, 1, 9, 2])))

    @pytest.mark.parametrize("score", [float("nan"), float("inf"), -1.0])
    def test_scores_that_are_no_scores(self, score: float) -> None:
        with pytest.raises(ModelError, match="The score of layer 'a'"):
            LayerScores(("a",), (1,), (score,), "by hand")

    def test_scores_that_do_not_fit_together(self) -> None:
        for names, parameters in [((), ()), (("a", "a"), (1, 1)), (("a",), (0,)), (("a", "b"), (1,))]:
            with pytest.raises(ModelError):
                LayerScores(names, parameters, (1.0,) * len(names), "by hand")
