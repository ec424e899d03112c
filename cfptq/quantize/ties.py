"""Decisions of rows whose two class scores are exactly equal.

A network without biases gives equal scores wherever all its hidden units are zero. The bias that removes the mean error of rounding would
decide all these rows at once.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cfptq.network import DecisionRule, Network
from cfptq.quantize.fake_quantized import fake_quantize_network
from cfptq.quantize.plan import LayerPlan, QuantizationPlan

#: Share of tied rows from which the last bias is moved. Fewer ties are left to rounding.
MIN_TIED_SHARE = 0.005
#: Steps of the bias grid beyond the tie, so that rounding the bias does not cross it again.
MARGIN_STEPS = 2


def keep_tied_decisions(network: Network, plan: QuantizationPlan, rows: Tensor, decision: DecisionRule) -> QuantizationPlan:
    """Move the last bias so that tied rows keep their decision, if that flips fewer of all rows.

    Args:
        network: the captured full-precision network.
        plan: the plan.
        rows: (N, ...) factual rows.
        decision: head of the network's raw output and decision threshold.

    Returns:
        The plan with another last bias, or ``plan`` itself. A network of three classes or more keeps its plan.
    """
    margin = _compute_margin(network, rows, decision)
    if margin is None or float((margin == 0).float().mean()) < MIN_TIED_SHARE:
        return plan
    tied = margin == 0
    before = _compute_margin(fake_quantize_network(network, plan), rows, decision)
    last = plan.layers[-1]
    if before is None or last.bias is None or last.bias.numel() > 2 or not bool((before[tied] > 0).any()):
        return plan
    step = _find_bias_step(plan, last)
    bias = last.bias.clone()
    bias[-1] -= float(before[tied].max()) + MARGIN_STEPS * step
    moved = replace(plan, layers=(*plan.layers[:-1], replace(last, bias=bias)))
    after = _compute_margin(fake_quantize_network(network, moved), rows, decision)
    wanted = margin > 0
    is_better = after is not None and int(((after > 0) != wanted).sum()) < int(((before > 0) != wanted).sum())
    return moved if is_better else plan


def _compute_margin(model: torch.nn.Module | Network, rows: Tensor, decision: DecisionRule) -> Tensor | None:
    """Return the margin of class 1, (N,), or None where there are more than two classes."""
    with torch.no_grad():
        logits = decision.class_logits(model(rows))
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else None


def _find_bias_step(plan: QuantizationPlan, layer: LayerPlan) -> float:
    """Return the largest step of the layer's bias, 0 where the bias stays in float."""
    form = next((form for form in plan.activations if form.tensor == layer.input), None)
    return 0.0 if form is None or not form.feeds_integers else float((layer.scale * form.scale).max())
