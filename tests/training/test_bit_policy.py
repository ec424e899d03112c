"""The bit policy: samples, costs, and the budget met exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cfptq.allocation import Budget
from cfptq.network import capture, count_multiply_adds_by_layer
from cfptq.training.bit_policy import BitCost, BitPolicy, compute_bops, compute_mean_bits, discretize_policy, score_by_policy

WIDTHS = (2, 3, 4, 8)


def _network() -> object:
    return capture(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(4, 6))


def test_samples_are_one_hot_with_the_frequencies_of_the_policy() -> None:
    policy = BitPolicy(1)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log())
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([policy.sample(1.0, generator).detach() for _ in range(4000)])
    assert torch.allclose(drawn.sum(dim=2), torch.ones(4000, 1))
    assert bool(((drawn - drawn.round()).abs() < 1e-6).all())
    assert torch.allclose(drawn.mean(dim=0), torch.tensor([[0.5, 0.1, 0.3, 0.1]]), atol=0.03)


def test_the_gradient_is_that_of_the_soft_sample() -> None:
    policy = BitPolicy(2)
    worth = torch.tensor([[1.0, 2.0, 3.0, 5.0], [0.0, 1.0, 0.0, -1.0]])
    (worth * policy.sample(0.7, torch.Generator().manual_seed(5))).sum().backward()
    uniform = torch.rand(2, 4, generator=torch.Generator().manual_seed(5))
    logits = torch.zeros(2, 4, requires_grad=True)
    soft = torch.softmax((torch.log_softmax(logits, dim=1) - torch.log(-torch.log(uniform))) / 0.7, dim=1)
    (worth * soft).sum().backward()
    assert torch.allclose(policy.logits.grad, logits.grad, atol=1e-6)
    assert float(logits.grad.abs().max()) > 0.01


def test_costs_are_the_papers_sums() -> None:
    network = _network()
    choice = torch.eye(4)[[0, 2, 3]]
    bits = compute_mean_bits(choice, WIDTHS)
    assert bits.tolist() == [2, 4, 8]
    assert count_multiply_adds_by_layer(network) == (30, 20, 8)
    assert float(compute_bops((30, 20, 8), bits, (8, 8, 8))) == 8 * (60 + 80 + 64)
    plain = BitCost.of(network, Budget.average(4), (8, 8, 8), hinge=False)
    assert float(plain(bits)) == pytest.approx((60 + 80 + 64) / (58 * 4))
    hinge = BitCost.of(network, Budget.average(3), (8, 8, 8))
    assert float(hinge(bits)) == pytest.approx((60 + 80 + 64) / (58 * 3) - 1)
    assert float(hinge(torch.tensor([2.0, 2.0, 2.0]))) == 0
    in_work = BitCost.of(network, Budget.average(4), (8, 8, 32), resource="bops", hinge=False)
    assert float(in_work(torch.tensor([4.0, 4.0, 4.0]))) == pytest.approx(1)


def test_a_convolution_multiplies_at_every_position() -> None:
    network = capture(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)), torch.randn(2, 1, 6, 6))
    assert count_multiply_adds_by_layer(network) == (27 * 16, 96)


@pytest.mark.parametrize("budget", [2.5, 4.0, 6.0])
def test_the_discretized_policy_is_the_likeliest_allocation_that_the_budget_pays_for(budget: float) -> None:
    network = _network()
    policy = BitPolicy(3)
    with torch.no_grad():
        policy.logits.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(int(budget * 2))).cumsum(dim=1))
    scores = score_by_policy(policy, network)
    allocation, overshot = discretize_policy(scores, Budget.average(budget))
    assert allocation.average_bits <= budget
    likely = torch.log_softmax(policy.logits.detach().double(), dim=1)
    sizes, best = (30, 20, 8), -float("inf")
    for places in itertools.product(range(4), repeat=3):
        if sum(n * WIDTHS[p] for n, p in zip(sizes, places, strict=True)) <= budget * 58:
            # A wider layer holds whatever a narrower one does.
            best = max(best, sum(float(likely[layer, : p + 1].max()) for layer, p in enumerate(places)))
    reached = sum(float(likely[layer, : WIDTHS.index(b) + 1].max()) for layer, b in enumerate(allocation.bits))
    assert reached == pytest.approx(best)
    favourite = policy.get_most_likely_bits()
    assert overshot == (sum(n * b for n, b in zip(sizes, favourite, strict=True)) > budget * 58)
