"""Hessian-trace score of HAWQ-V2 (Dong et al. 2020), taken at counterfactual points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.per_row_gradients import run_in_chunks
from cfptq.allocation.round_to_nearest import round_weight_to_nearest
from cfptq.allocation.scores import LayerScores, MeasuredScores
from cfptq.errors import DataError
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Network, infer_head
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS, CHANNEL_WIDTHS, Granularity

#: Random vectors that a trace is estimated from.
PROBES = 32

#: Rows whose graph is held at one time. More rows are processed in chunks, each with probes of its own.
CHUNK_ROWS = 1024


def score_by_hessian_trace(
    network: Network,
    calibration: CalibrationSet,
    *,
    decision: DecisionRule | None = None,
    granularity: Granularity = "layer",
    progress: bool = True,
) -> LayerScores:
    """Score each layer or channel at each width by the mean trace of the Hessian of L_valid in its weights times ‖Ŵ − W‖².

    Ŵ is rounded to nearest. L_valid is the mean cross-entropy towards the target over the counterfactual points, by their calibration
    weights. A layer or channel with a negative trace, at which the loss is concave, has score 0.

    Args:
        network: the full-precision network f.
        calibration: a set with counterfactual points x + δ and their targets.
        decision: head of the network's raw output and decision threshold. None infers the head.
        granularity: what is scored, a layer or an output channel.
        progress: show a bar when it takes long.

    Raises:
        DataError: the set holds no counterfactual points, or all of them have weight 0.
    """
    chosen = calibration.origin == COUNTERFACTUAL
    weights = calibration.weights[chosen]
    if not float(weights.sum()) > 0:
        raise DataError(
            "The calibration set holds no counterfactual points to take the Hessian at. Nobody in it was rejected, or it is factual only."
        )
    rows, target = calibration.rows[chosen], calibration.target[chosen]
    share = weights / weights.sum()
    if granularity == "channel":
        channels = estimate_channel_traces(network, rows, target, share, decision=decision, progress=progress)
        return ChannelScores.from_channel_damage(network, compute_channel_trace_damage(network, channels), "hessian trace")
    traces = estimate_hessian_traces(network, rows, target, share, decision=decision, progress=progress)
    return MeasuredScores.from_damage(network, compute_trace_damage(network, traces), "hessian trace")


def compute_trace_damage(network: Network, traces: Tensor) -> list[list[float]]:
    """Multiply the mean trace of each layer by the squared error of rounding its weight to nearest.

    Args:
        network: the full-precision network.
        traces: Hessian trace of each layer, (L,). Negative ones count as 0.

    Returns:
        One row for each layer, one column for each of ``cfptq.quantize.ALL_WIDTHS``.
    """
    damage = []
    for layer, trace in zip(network.layers, traces.clamp_min(0).tolist(), strict=True):
        weight = network.weight(layer.name)
        errors = [float((round_weight_to_nearest(weight, bits) - weight).double().square().sum()) for bits in ALL_WIDTHS]
        damage.append([trace / layer.parameters * error for error in errors])
    return damage


def compute_channel_trace_damage(network: Network, traces: Sequence[Tensor]) -> list[Tensor]:
    """Multiply the mean trace of each output channel by the squared error of rounding its weights to nearest.

    Args:
        network: the full-precision network.
        traces: Hessian traces of each layer's channels, (out,). Negative ones count as 0.

    Returns:
        One tensor (out, widths) for each layer, with one column for each of ``cfptq.quantize.CHANNEL_WIDTHS``.
    """
    damage = []
    for layer, trace in zip(network.layers, traces, strict=True):
        weight = network.weight(layer.name)
        errors = [(round_weight_to_nearest(weight, bits) - weight).double().square().flatten(1).sum(1) for bits in CHANNEL_WIDTHS]
        mean = trace.clamp_min(0) * layer.weight_shape[0] / layer.parameters
        damage.append(torch.stack([mean * error for error in errors], dim=1))
    return damage


def estimate_hessian_traces(
    network: Network,
    rows: Tensor,
    target: Tensor,
    share: Tensor,
    *,
    decision: DecisionRule | None = None,
    probes: int = PROBES,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Estimate the trace of each layer's block of the Hessian of Σ share_i CE(f(u_i), y_i) by Hutchinson's method.

    A probe v of random signs over one layer's weights gives vᵀ H_l v, whose mean is the trace of that block. The graph of the first
    gradient is built once for each chunk of rows.

    Args:
        network: the full-precision network f. It is not changed.
        rows: points u_i, (N, ...).
        target: class y_i of each point, (N,).
        share: weight of each point, (N,).
        decision: head of the network's raw output and decision threshold. None infers the head.
        probes: random vectors for each layer and chunk.
        seed: seed of the random vectors.
        progress: show a bar when it takes long.

    Returns:
        The traces in execution order, (L,) float64.
    """
    return torch.stack(_average_probes(network, rows, target, share, torch.sum, decision, probes, seed, progress))


def estimate_channel_traces(
    network: Network,
    rows: Tensor,
    target: Tensor,
    share: Tensor,
    *,
    decision: DecisionRule | None = None,
    probes: int = PROBES,
    seed: int = 0,
    progress: bool = True,
) -> list[Tensor]:
    """Estimate the trace of the Hessian's block of each output channel, as ``estimate_hessian_traces`` does of each layer.

    The arguments are the same. The mean over probes of v ∘ H_l v, summed over a channel's weights, is that channel's trace.

    Args:
        network: the full-precision network f. It is not changed.
        rows: points u_i, (N, ...).
        target: class y_i of each point, (N,).
        share: weight of each point, (N,).
        decision: head of the network's raw output and decision threshold. None infers the head.
        probes: random vectors for each layer and chunk.
        seed: seed of the random vectors.
        progress: show a bar when it takes long.

    Returns:
        The traces of each layer's channels in execution order, (out,) float64.
    """

    def sum_by_channel(product: Tensor) -> Tensor:
        return product.flatten(1).sum(1)

    return _average_probes(network, rows, target, share, sum_by_channel, decision, probes, seed, progress)


def _average_probes(
    network: Network,
    rows: Tensor,
    target: Tensor,
    share: Tensor,
    reduce: Callable[[Tensor], Tensor],
    decision: DecisionRule | None,
    probes: int,
    seed: int,
    progress: bool,
) -> list[Tensor]:
    """Return each layer's mean over probes v of ``reduce(v ∘ H_l v)``, float64, summed over chunks of rows."""
    totals = [torch.zeros((), dtype=torch.float64) for _ in network.layers]
    decision = decision or DecisionRule(infer_head(run_in_chunks(network, rows)))
    generator = torch.Generator().manual_seed(seed)
    chunks = list(zip(torch.split(rows, CHUNK_ROWS), torch.split(target, CHUNK_ROWS), torch.split(share, CHUNK_ROWS), strict=True))
    for chunk_rows, chunk_target, chunk_share in track(chunks, "Hessian traces", enabled=progress):
        with torch.inference_mode(False), torch.enable_grad():
            weights = {layer.weight: network.weight(layer.name).clone().requires_grad_() for layer in network.layers}
            output = functional_call(network.graph, weights, (chunk_rows,))
            loss = (chunk_share * cross_entropy(decision.class_logits(output), chunk_target, reduction="none")).sum()
            inputs = tuple(weights.values())
            slopes = torch.autograd.grad(loss, inputs, create_graph=True)
            for number, (weight, slope) in enumerate(zip(inputs, slopes, strict=True)):
                for _ in range(probes):
                    signs = torch.randint(0, 2, weight.shape, generator=generator).mul_(2).sub_(1).to(weight.dtype)
                    (product,) = torch.autograd.grad(slope, weight, signs, retain_graph=True)
                    totals[number] = totals[number] + reduce(signs * product).double() / probes
    return totals
