"""Sweeps over a finished plan, which move integers and biases to lower the error of margins.

``cfptq.quantize.margin_rounding.round_by_margins`` descends once, while the layers behind are still in full precision. A sweep descends
again when they are quantized, and on more rows. The objective is the same with two differences. The margin's error is that of the whole
quantized model. Each channel's own error is counted from its present output, so that the gradients stay valid where it moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from cfptq.io.progress import track
from cfptq.network import DecisionRule, Layer, Network, target_margin
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.compensate import factorize_hessian
from cfptq.quantize.fake_quantized import check_matches, insert_fake_quantization
from cfptq.quantize.formats import ActivationFormat
from cfptq.quantize.margin_rounding import MIN_DESCENT_ROWS, descend_on_margins, is_descent_affordable
from cfptq.quantize.plan import LayerPlan, QuantizationPlan, widen_steps_for_bias
from cfptq.quantize.quantizer import build_layer_problem, flatten_positions
from cfptq.quantize.rounding_rule import RoundedWeight
from cfptq.quantize.row_sampling import sample_affordable_rows
from cfptq.quantize.structure import SignBounds

#: Multiply-adds that the sweep of one layer may take, and numbers that it may hold. A layer that costs more uses fewer rows.
MAX_SWEEP_MACS, MAX_HELD_NUMBERS = 2**35, 2**26

#: Factor of the weight of a row that the quantized model decides otherwise, in every sweep after the first.
OTHER_DECISION_WEIGHT = 11.0

#: Multiply-adds of one pass of the network over the rows. Beyond, rows are sampled.
MAX_PASS_MACS = 2**33


@dataclass(frozen=True)
class MarginTarget:
    """Margins that a quantized model should have.

    Attributes:
        rows: (N, ...).
        target: the class whose margin counts, (N,).
        margins: the margin that each row should have, in logits, (N,).
        weights: weight of each row, (N,).
        huber_delta: residual above which the squared loss becomes linear, in logits, so that outliers do not dominate.
    """

    rows: Tensor
    target: Tensor
    margins: Tensor
    weights: Tensor
    huber_delta: float = math.inf

    @staticmethod
    def of(network: Network, calibration: CalibrationSet, decision: DecisionRule) -> MarginTarget:
        """Return the full-precision margins of as many of a calibration set's rows as sweeps afford.

        Args:
            network: the full-precision network.
            calibration: rows, weights and targets.
            decision: head of the network's raw output and decision threshold.
        """
        kept, weights = sample_affordable_rows(network, calibration.weights, MAX_PASS_MACS, MIN_DESCENT_ROWS)
        rows, target = calibration.rows[kept], calibration.target[kept]
        with torch.no_grad():
            margins = target_margin(decision.class_logits(network(rows)), target)
        return MarginTarget(rows, target, margins, weights)

    def error(self, margins: Tensor) -> float:
        """Return the weighted mean squared error of ``margins``, or Huber's beyond ``huber_delta``."""
        residual = (margins - self.margins).abs()
        linear = 2 * self.huber_delta * residual - self.huber_delta**2
        each = torch.where(residual < self.huber_delta, residual.square(), linear)
        return float((self.weights * each).sum() / self.weights.sum())

    def least_squares_weights(self, margins: Tensor) -> Tensor:
        """Return the row weights of a sum of squares with the gradient of ``error`` at ``margins``, (N,)."""
        return self.weights * (self.huber_delta / (margins - self.margins).abs()).clamp(max=1)

    def lift_accepted(self, reserve: float) -> MarginTarget:
        """Return the same target with larger margins for the rows that the full-precision model accepts.

        Args:
            reserve: what is added to their margins, in logits.
        """
        return replace(self, margins=torch.where(self.margins > 0, self.margins + reserve, self.margins))

    def emphasize_other_decisions(self, margins: Tensor) -> MarginTarget:
        """Return the same target with more weight on the rows that are decided otherwise.

        Many people can share one row near the boundary, all of whom one small error decides otherwise.

        Args:
            margins: present margins of the rows, (N,).
        """
        is_otherwise = (margins > 0) != (self.margins > 0)
        return replace(self, weights=torch.where(is_otherwise, OTHER_DECISION_WEIGHT * self.weights, self.weights))


def sweep_plan(
    network: Network, plan: QuantizationPlan, target: MarginTarget, decision: DecisionRule, sweeps: int = 1, progress: bool = False
) -> QuantizationPlan:
    """Sweep over the integers and biases of a plan's layers.

    Scales, widths and activation formats stay. A layer keeps its integers in three cases: moving them does not lower the error of margins,
    it has more than 2^16 weights, or it affords fewer than 512 rows. Every sweep after the first gives more weight to the rows that the
    plan before it decides otherwise.

    Args:
        network: the network of the plan. Its weights only say which structure the plan keeps.
        plan: the plan to sweep.
        target: rows, and the margins that they should have.
        decision: head of the network's raw output and decision threshold.
        sweeps: number of sweeps.
        progress: whether a progress bar may be shown.
    """
    check_matches(network, plan)
    # Callers may have gradients switched off.
    with torch.inference_mode(False), torch.enable_grad():
        kept, weights = sample_affordable_rows(network, target.weights, MAX_PASS_MACS, MIN_DESCENT_ROWS)
        target = replace(target, rows=target.rows[kept], target=target.target[kept], margins=target.margins[kept], weights=weights)
        run = _QuantizedRun(network, plan, target, decision)
        for number in track(range(sweeps), "sweeping layers", enabled=progress):
            run = _sweep_layers(network, run, target.emphasize_other_decisions(run.margins) if number else target, decision)
    return run.plan


def _sweep_layers(network: Network, run: _QuantizedRun, target: MarginTarget, decision: DecisionRule) -> _QuantizedRun:
    """Sweep once over all layers from ``run``, a run of the plan on the rows of ``target``, and return that of the plan reached."""
    for position, layer in enumerate(network.layers):
        before = run.plan.layers[position]
        after = _sweep_layer(network, layer, before, run.plan.keep, run, target)
        if after is before:
            continue
        moved = widen_steps_for_bias(after, run.plan.input_format(before))
        layers = (*run.plan.layers[:position], moved, *run.plan.layers[position + 1 :])
        candidate = _QuantizedRun(network, replace(run.plan, layers=layers), target, decision)
        if target.error(candidate.margins) < target.error(run.margins):
            run = candidate
    return run


def _sweep_layer(
    network: Network, layer: Layer, plan: LayerPlan, keep: tuple[str, ...], run: _QuantizedRun, target: MarginTarget
) -> LayerPlan:
    """Move the integers and bias of one layer. Return ``plan`` itself where nothing moves."""
    seen, slope = run.inputs[layer.name], run.slopes[layer.name]
    weights = target.least_squares_weights(run.margins)
    start = RoundedWeight(plan.integers, plan.scale, plan.bias).split_columns(plan.fine_inputs)
    problem = replace(
        build_layer_problem(network, layer, plan.bits, seen, seen, ActivationFormat(layer.input, 32), weights, plan.fine_inputs),
        weight=start.weight(),
        bias=plan.bias,
        signs=SignBounds.of(network.weight(layer.name), keep, plan.kept_inputs),
    )
    groups, _, k = problem.grouped(problem.weight).shape
    parameters, positions = problem.weight.numel(), slope.shape[2]
    numbers_per_row = k + slope.shape[1] if positions == 1 and groups == 1 else parameters + slope.shape[1] * positions
    rows = min(MAX_SWEEP_MACS // (k * parameters), MAX_HELD_NUMBERS // numbers_per_row)
    if not is_descent_affordable(problem, rows):
        return plan
    found = descend_on_margins(problem, factorize_hessian(problem), start, run.margins - target.margins, slope, rows)
    return plan if found is start else replace(plan, integers=found.join_columns(plan.fine_inputs).integers, bias=found.bias)


class _QuantizedRun(fx.Interpreter):
    """One run of the quantized network.

    Attributes:
        plan: the plan that is run.
        inputs: quantized input of each layer by name, (N, ...).
        slopes: the margins' gradient in each layer's output by name, (N, channels, positions).
        margins: the target margins, (N,).
    """

    def __init__(self, network: Network, plan: QuantizationPlan, target: MarginTarget, decision: DecisionRule) -> None:
        super().__init__(insert_fake_quantization(network, plan.layers, {form.tensor: form for form in plan.activations}))
        self.plan = plan
        self._layers = {layer.node: layer.name for layer in network.layers}
        self._outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        margins = target_margin(decision.class_logits(self.run(target.rows)), target.target)
        slopes = torch.autograd.grad(margins.sum(), [self._outputs[layer.name] for layer in network.layers])
        self.margins = margins.detach()
        self.slopes = {layer.name: flatten_positions(slope, layer) for layer, slope in zip(network.layers, slopes, strict=True)}

    def run_node(self, node: fx.Node) -> Any:
        """Run one node, and keep the inputs and outputs of layers."""
        output = super().run_node(node)
        if node.name in self._layers:
            name = self._layers[node.name]
            self.inputs[name] = self.env[node.all_input_nodes[0]].detach()
            self._outputs[name] = output.requires_grad_()
        return output
