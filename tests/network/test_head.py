"""Raw outputs become class logits whose argmax is the decision, whatever the head and the threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfptq.errors import ModelError
from cfptq.network.head import DecisionRule, Head, class_logits, decide, infer_head, target_margin


@pytest.mark.parametrize(
    ("output", "head"),
    [
        (torch.tensor([[0.2, 0.8], [1.0, 0.0]]), Head.PROBABILITIES),
        (torch.tensor([[0.2, 0.3, 0.5]]), Head.PROBABILITIES),
        (torch.tensor([[0.2, 0.9]]), Head.LOGITS),
        (torch.tensor([[-1.0, 2.0]]), Head.LOGITS),
        (torch.tensor([0.0, 0.4, 1.0]), Head.PROBABILITY),
        (torch.tensor([[0.4], [1.2]]), Head.LOGIT),
        (torch.tensor([-0.1, 0.4]), Head.LOGIT),
    ],
)
def test_a_head_is_known_by_shape_and_values(output: torch.Tensor, head: Head) -> None:
    assert infer_head(output) is head


def test_half_precision_softmax_counts_as_probabilities() -> None:
    output = torch.randn(100, 10).half().float().softmax(1).half()
    assert infer_head(output) is Head.PROBABILITIES


@pytest.mark.parametrize("shape", [(), (0,), (0, 2), (2, 3, 4)])
def test_a_shape_that_is_no_classifier_s_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="shape"):
        infer_head(torch.zeros(shape))


@settings(max_examples=60, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_all_binary_heads_decide_one_exactly_above_the_threshold(probability: float, threshold: float) -> None:
    p = torch.tensor([probability], dtype=torch.float64)
    z = torch.log(p) - torch.log1p(-p)
    raws = {
        Head.PROBABILITY: p,
        Head.LOGIT: z[:, None],
        Head.PROBABILITIES: torch.stack((1 - p, p), 1),
        Head.LOGITS: torch.stack((torch.full_like(z, 3.0), z + 3), 1),
    }
    expected = math.log(probability / (1 - probability)) - math.log(threshold / (1 - threshold))
    for head, raw in raws.items():
        logits = class_logits(raw, head, threshold)
        assert logits.shape == (1, 2)
        assert float(logits[0, 1] - logits[0, 0]) == pytest.approx(expected, abs=1e-9)
        if abs(expected) > 1e-6:
            assert int(decide(logits)) == int(probability > threshold)


def test_probabilities_of_zero_and_one_stay_finite_and_keep_their_side() -> None:
    logits = class_logits(torch.tensor([0.0, 1.0]), Head.PROBABILITY)
    assert torch.isfinite(logits).all()
    assert decide(logits).tolist() == [0, 1]
    assert torch.isfinite(class_logits(torch.tensor([[0.0, 1.0]]), Head.PROBABILITIES)).all()


def test_class_logits_have_the_gradient_of_the_log_odds() -> None:
    p = torch.tensor([0.1, 0.7], requires_grad=True)
    class_logits(p, Head.PROBABILITY, 0.3)[:, 1].sum().backward()
    assert p.grad is not None
    assert torch.allclose(p.grad, 1 / (p.detach() * (1 - p.detach())))


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, math.nan, "0.5", True])
def test_a_threshold_that_is_no_probability_is_refused(threshold: object) -> None:
    with pytest.raises(ModelError, match="between 0 and 1"):
        class_logits(torch.zeros(3), Head.LOGIT, threshold)  # type: ignore[arg-type]


def test_a_threshold_needs_two_classes() -> None:
    with pytest.raises(ModelError, match="two classes"):
        class_logits(torch.zeros(2, 3), Head.LOGITS, 0.5)


@pytest.mark.parametrize(
    ("head", "shape"), [(Head.LOGIT, (2, 2)), (Head.PROBABILITY, (2, 3)), (Head.LOGITS, (2, 1)), (Head.PROBABILITIES, (2,))]
)
def test_an_output_that_does_not_fit_its_head_is_refused(head: Head, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="needs an output"):
        class_logits(torch.zeros(shape), head)


def test_the_target_margin_is_the_lead_over_the_best_other_class() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [3.0, 3.0, 0.0]])
    assert target_margin(logits, torch.tensor([1, 2, 0])).tolist() == [2.0, -2.0, 0.0]
    assert decide(logits).tolist() == [1, 1, 0]


def test_a_target_that_is_no_class_is_refused_with_its_row() -> None:
    with pytest.raises(ModelError, match=r"rows 1\.$"):
        target_margin(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ModelError, match="target must have shape"):
        target_margin(torch.zeros(2, 2), torch.tensor([0]))


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, math.nan, True, "0.5"])
def test_a_decision_rule_refuses_a_threshold_that_is_no_probability(threshold: Any) -> None:
    with pytest.raises(ModelError, match="threshold must lie between 0 and 1"):
        DecisionRule(Head.LOGIT, threshold)


def test_a_decision_rule_decides_above_its_threshold() -> None:
    output = torch.tensor([0.55, 0.65, 0.75])
    assert DecisionRule(Head.PROBABILITY).decide(output).tolist() == [1, 1, 1]
    assert DecisionRule(Head.PROBABILITY, 0.7).decide(output).tolist() == [0, 0, 1]
    with pytest.raises(ModelError, match="two classes"):
        DecisionRule(Head.LOGITS, 0.7).class_logits(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (DecisionRule(Head.LOGITS), 'one logit per class (head="logits"), the largest decides'),
        (DecisionRule(Head.PROBABILITIES, 0.8), 'one probability per class (head="probabilities"), class 1 is decided above 0.8'),
        (DecisionRule(Head.LOGIT), 'one logit of class 1 (head="logit"), class 1 is decided above 0.5'),
        (DecisionRule(Head.PROBABILITY, 0.3), 'one probability of class 1 (head="probability"), class 1 is decided above 0.3'),
    ],
)
def test_a_decision_rule_says_how_it_reads_an_output(rule: DecisionRule, words: str) -> None:
    assert str(rule) == words
