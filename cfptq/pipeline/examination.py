"""Remarks on calibration rows and plans that their owner may not expect."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cfptq.errors import DataWarning, ModelError, ModelWarning
from cfptq.network import Network, decide
from cfptq.pipeline.method import Method
from cfptq.pipeline.task import QuantizationTask
from cfptq.quantize import QuantizationPlan, fake_quantize_network
from cfptq.quantize.extreme_rows import find_extreme_rows
from cfptq.recourse import resolve_target

#: Share of calibration decisions that a plan may change without a remark where the network's numbers are far from each other.
MAX_FLIPS = 0.01

#: Share from which on such a plan is refused.
MAX_ACCEPTED_FLIPS = 0.05

#: Ratio of a hidden tensor's largest value to its largest change over the rows from which on a common bias hides the change.
MAX_LEVEL_RATIO = 5.0

#: Ratio of a hidden tensor's largest channel to its median channel from which on one step cannot suit both.
MAX_CHANNEL_RATIO = 1e4

#: Sizes of a hidden tensor or of logits between which products and squares stay within float32.
MIN_SIZE, MAX_SIZE = 1e-15, 1e15


def examine_rows(task: QuantizationTask, method: Method) -> tuple[QuantizationTask, tuple[str, ...]]:
    """Warn of calibration rows that alone set a range, and leave them out where the method limits the influence of one row.

    Args:
        task: the model and its calibration rows.
        method: the quantization method.

    Returns:
        The task that the method is to see, and one sentence a row that was found.
    """
    found = find_extreme_rows(task.network, task.rows)
    if not found:
        return task, ()
    columns = getattr(task.space, "column_names", None)
    ending = "It is left out of the calibration." if method.drops_extreme_rows else "Other rows lose precision. Correct or remove it."
    remarks = tuple(_capitalize(f"{row.describe(columns)}. {ending}") for row in found)
    for remark in remarks:
        warnings.warn(remark, DataWarning, stacklevel=2)
    if not method.drops_extreme_rows:
        return task, remarks
    kept = torch.ones(len(task.rows), dtype=torch.bool)
    kept[[row.row for row in found]] = False
    return task.keep_rows(kept.nonzero()[:, 0]), remarks


def describe_bounded_work(task: QuantizationTask, method: Method) -> tuple[str, ...]:
    """Return what recourse near the boundary was left out to bound the work, in at most one remark."""
    note = task.boundary_set(method)[1].note if method.rows == "boundary" else ""
    return (note,) if note else ()


def describe_reserve(task: QuantizationTask, method: Method, plan: QuantizationPlan) -> tuple[str, ...]:
    """Return the price of a method's reserve, in one remark, or nothing where it has none.

    Args:
        task: the model and its calibration rows.
        method: the quantization method.
        plan: the plan that it made.
    """
    if not method.reserve:
        return ()
    logits = task.predictor.logits(task.rows)
    wanted = resolve_target(task.target, task.rows, logits)
    with torch.no_grad():
        given = decide(task.decision.class_logits(fake_quantize_network(task.network, plan)(task.rows)))
    before, after = (float((decisions == wanted).double().mean()) for decisions in (decide(logits), given))
    return (
        f"Reserve {method.reserve:g}: the quantized model gives {after:.2%} of the calibration rows the target, and the full-precision "
        f"model {before:.2%}. The difference, {100 * (after - before):+.2f} points, is its price",
    )


def examine_decisions(task: QuantizationTask, plan: QuantizationPlan) -> tuple[str, ...]:
    """Warn of calibration decisions that a plan changes because the network's numbers are too far from each other.

    Args:
        task: the model and its calibration rows.
        plan: a plan for its network.

    Returns:
        At most one sentence.

    Raises:
        ModelError: the plan changes more than ``MAX_ACCEPTED_FLIPS`` of the decisions.
    """
    reason = _find_extreme_numbers(task.network, task.rows)
    if reason is None:
        return ()
    with torch.no_grad():
        given = decide(task.decision.class_logits(fake_quantize_network(task.network, plan)(task.rows)))
    flips = float((given != decide(task.predictor.logits(task.rows))).double().mean())
    if flips <= MAX_FLIPS:
        return ()
    remark = f"{_capitalize(reason)}. The quantized model decides {flips:.1%} of the calibration rows otherwise."
    if flips > MAX_ACCEPTED_FLIPS:
        raise ModelError(f"{remark} Rescale the layer, or calibrate with more activation_bits.")
    warnings.warn(remark, ModelWarning, stacklevel=2)
    return (remark,)


def _find_extreme_numbers(network: Network, rows: Tensor) -> str | None:
    """Return why 8-bit steps cannot suit the network's numbers, or None for an ordinary network."""
    hidden = [layer.input for layer in network.layers if layer.input != network.input_name]
    values = network.observe(rows, {*hidden, *(layer.node for layer in network.layers)})
    for layer in network.layers:
        for tensor in (layer.input, layer.node):
            if tensor not in values or tensor == network.input_name:
                continue
            flat = values[tensor].flatten(1).double()
            size = float(flat.abs().max())
            if size > 0 and not MIN_SIZE <= size <= MAX_SIZE:
                return (
                    f"the values at layer {layer.name!r} reach only {size:.3g}"
                    if size < 1
                    else f"the values at layer {layer.name!r} reach {size:.3g}"
                )
        if layer.input not in hidden:
            continue
        inputs = values[layer.input].flatten(1).double()
        heights, changes = inputs.abs().amax(dim=0), inputs.amax(dim=0) - inputs.amin(dim=0)
        highest, change, live = float(heights.max()), float(changes.max()), heights[heights > 0]
        if highest > MAX_LEVEL_RATIO * change > 0:
            return f"a bias before layer {layer.name!r} lifts its inputs to {highest:.3g}, and rows change them by at most {change:.3g}"
        if len(live) and highest > MAX_CHANNEL_RATIO * float(live.median()):
            return f"the largest input of layer {layer.name!r} reaches {highest:.3g}, and most reach {float(live.median()):.3g}"
    return None


def _capitalize(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
