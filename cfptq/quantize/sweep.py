"""Sweeps over a finished plan: layer after layer, integers and biases move to where margins err least with all other layers as they are.

What :func:`cfptq.quantize.margin_rounding.round_by_margins` does once while the layers behind are still real, done again when they are
quantized and on as many rows as are at hand. Each layer descends on the same objective, with two differences: the margin's error is that
of the whole quantized model, and each channel's own error is counted from what it puts out now, so that the slopes hold where it moves to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from cfptq.network import Head, Layer, Network, class_logits, target_margin
from cfptq.quantize.compensate import factorize_hessian
from cfptq.quantize.fake_quantized import check_matches, fake_quantized
from cfptq.quantize.formats import ActivationFormat
from cfptq.quantize.margin_rounding import FEWEST_ROWS, moved, worth_moving
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.quantizer import build_layer_problem, flatten_positions
from cfptq.quantize.reconstruct import RoundedWeight
from cfptq.quantize.row_sampling import sample_affordable_rows

#: Multiply-adds that one layer's sweep may take, numbers that it may hold, and multiply-adds of one pass of the network over the rows.
WORK, HELD, PASS_WORK = 2**35, 2**26, 2**33


@dataclass(frozen=True)
class MarginTarget:
    """What margins ought to be.

    Attributes:
        rows: (N, ...). target: (N,) the class whose margin counts. margins: (N,) what it ought to be, in logits.
        weights: (N,) how much each row counts.
        bend: error from which a row counts linearly and no longer squared: a few rows that cannot be met do not rule.
    """

    rows: Tensor
    target: Tensor
    margins: Tensor
    weights: Tensor
    bend: float = math.inf

    def error(self, margins: Tensor) -> float:
        """Weighted mean of the squared errors of ``margins`` (Huber's beyond ``bend``)."""
        apart = (margins - self.margins).abs()
        each = torch.where(apart < self.bend, apart.square(), 2 * self.bend * apart - self.bend**2)
        return float((self.weights * each).sum() / self.weights.sum())

    def pull(self, margins: Tensor) -> Tensor:
        """(N,) the weights of a sum of squares that has the same slope at ``margins`` as :meth:`error`."""
        return self.weights * (self.bend / (margins - self.margins).abs()).clamp(max=1)


def sweep_plan(network: Network, plan: QuantizationPlan, aim: MarginTarget, head: Head, threshold: float | None) -> QuantizationPlan:
    """``plan`` after one sweep over the integers and biases of its layers; steps, widths and activation formats stay.

    A layer keeps what it has where moving it does not lower the error of margins, where it has more than 2^16 weights, or where fewer
    than 512 rows are affordable for it.

    Args:
        network: what the plan is for; its weights are not looked at.
        aim: rows, and their margins in full precision.
        head, threshold: what the network puts out and where it decides.
    """
    check_matches(network, plan)
    # Callers may have gradients switched off.
    with torch.inference_mode(False), torch.enable_grad():
        kept, weights = sample_affordable_rows(network, aim.weights, PASS_WORK, FEWEST_ROWS)
        aim = replace(aim, rows=aim.rows[kept], target=aim.target[kept], margins=aim.margins[kept], weights=weights)
        layers = {layer.name: layer for layer in plan.layers}

        def run() -> _Run:
            return _Run(network, replace(plan, layers=tuple(layers.values())), aim, head, threshold)

        now = run()
        for layer in network.layers:
            before = layers[layer.name]
            after = _moved(network, layer, before, now, aim)
            if after is before:
                continue
            layers[layer.name] = after
            then = run()
            if aim.error(then.margins) < aim.error(now.margins):
                now = then
            else:
                layers[layer.name] = before
        return replace(plan, layers=tuple(layers.values()))


def _moved(network: Network, layer: Layer, plan: LayerPlan, run: _Run, aim: MarginTarget) -> LayerPlan:
    seen, slope = run.inputs[layer.name], run.slopes[layer.name]
    problem = replace(
        build_layer_problem(network, layer, plan.bits, seen, seen, ActivationFormat(layer.input, 32), aim.pull(run.margins)),
        weight=plan.weight(),
        bias=plan.bias,
    )
    groups, _, k = problem.grouped(problem.weight).shape
    parameters, positions = problem.weight.numel(), slope.shape[2]
    held = k + slope.shape[1] if positions == 1 and groups == 1 else parameters + slope.shape[1] * positions
    rows = min(WORK // (k * parameters), HELD // held)
    if not worth_moving(problem, rows):
        return plan
    start = RoundedWeight(plan.integers, plan.scale, plan.bias)
    found = moved(problem, factorize_hessian(problem), start, run.margins - aim.margins, slope, rows)
    return plan if found is start else replace(plan, integers=found.integers, bias=found.bias)


class _Run(fx.Interpreter):
    """One run of the quantized network.

    Attributes:
        inputs: layer -> what it sees, quantized, (N, ...). slopes: layer -> ∂margin/∂output, (N, channels, positions).
        margins: (N,) the target margins.
    """

    def __init__(self, network: Network, plan: QuantizationPlan, aim: MarginTarget, head: Head, threshold: float | None) -> None:
        super().__init__(fake_quantized(network, plan.layers, {form.tensor: form for form in plan.activations}))
        self._layers = {layer.node: layer.name for layer in network.layers}
        self._outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        margins = target_margin(class_logits(self.run(aim.rows), head, threshold), aim.target)
        slopes = torch.autograd.grad(margins.sum(), [self._outputs[layer.name] for layer in network.layers])
        self.margins = margins.detach()
        self.slopes = {layer.name: flatten_positions(slope, layer) for layer, slope in zip(network.layers, slopes, strict=True)}

    def run_node(self, node: fx.Node) -> Any:
        """As it is; what goes into layers and comes out of them is kept."""
        output = super().run_node(node)
        if node.name in self._layers:
            name = self._layers[node.name]
            self.inputs[name] = self.env[node.all_input_nodes[0]].detach()
            self._outputs[name] = output.requires_grad_()
        return output
