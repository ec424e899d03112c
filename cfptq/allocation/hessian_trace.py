"""The Hessian-trace score of HAWQ-V2 (Dong et al. 2020), taken at the points where recourse ends."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from cfptq.allocation.gradient_norm import outputs
from cfptq.allocation.margin_change import MeasuredScores
from cfptq.allocation.round_to_nearest import round_weight_to_nearest
from cfptq.errors import DataError
from cfptq.io.progress import track
from cfptq.network import Head, Network, class_logits, infer_head
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS

#: Random vectors that a trace is estimated from.
PROBES = 32

#: Rows whose graph is held at one time.
CHUNK_ROWS = 1024


def score_by_hessian_trace(
    network: Network, calibration: CalibrationSet, *, head: Head | None = None, threshold: float | None = None, progress: bool = True
) -> MeasuredScores:
    """For each layer and width, the mean trace of the Hessian of L_valid in W_l times ‖Ŵ_l − W_l‖², Ŵ_l rounded plainly.

    L_valid is the mean cross-entropy towards the target over the counterfactual rows, weighted by the calibration weights. A layer whose
    trace comes out negative (the loss bends down there) scores 0.

    Args, Raises: as :func:`cfptq.allocation.score_by_counterfactual_gradient`.
    """
    chosen = calibration.origin == COUNTERFACTUAL
    weights = calibration.weights[chosen]
    if not float(weights.sum()) > 0:
        raise DataError(
            "the calibration set holds no counterfactual points to take the Hessian at: nobody in it was rejected, or it is factual only"
        )
    rows, target = calibration.rows[chosen], calibration.target[chosen]
    traces = estimate_hessian_traces(network, rows, target, weights / weights.sum(), head=head, threshold=threshold, progress=progress)
    damage = []
    for layer, trace in zip(network.layers, traces.clamp_min(0).tolist(), strict=True):
        weight = network.weight(layer.name)
        changes = [float((round_weight_to_nearest(weight, bits) - weight).double().square().sum()) for bits in ALL_WIDTHS]
        damage.append(tuple(trace / layer.parameters * change for change in changes))
    return MeasuredScores(
        names=tuple(layer.name for layer in network.layers),
        parameters=tuple(layer.parameters for layer in network.layers),
        scores=tuple(row[0] for row in damage),
        kind="hessian trace",
        widths=ALL_WIDTHS,
        damage=tuple(damage),
    )


def estimate_hessian_traces(
    network: Network,
    rows: Tensor,
    target: Tensor,
    share: Tensor,
    *,
    head: Head | None = None,
    threshold: float | None = None,
    probes: int = PROBES,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Hutchinson's estimate of the trace of each layer's own block of the Hessian of Σ share_i CE(f(u_i), y_i), (L,) float64.

    A probe v of random signs over one layer's weights gives vᵀ H_l v, whose mean is the trace of that block. The first gradient's
    graph is built once for a chunk of rows; chunks add up, each with probes of its own.

    Args:
        network: the full-precision model f; left as it is.
        rows: (N, ...) points u_i. target: (N,) classes y_i. share: (N,) weights.
        head, threshold: what the network puts out and where it decides.
        probes: vectors for each layer and chunk. seed: of the vectors. progress: show a bar when it takes long.
    """
    head = head or infer_head(outputs(network, rows))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(network.layers), dtype=torch.float64)
    chunks = list(zip(torch.split(rows, CHUNK_ROWS), torch.split(target, CHUNK_ROWS), torch.split(share, CHUNK_ROWS), strict=True))
    for some, wanted, each in track(chunks, "Hessian traces", enabled=progress):
        with torch.inference_mode(False), torch.enable_grad():
            weights = {layer.weight: network.weight(layer.name).clone().requires_grad_() for layer in network.layers}
            output = functional_call(network.graph, weights, (some,))
            loss = (each * cross_entropy(class_logits(output, head, threshold), wanted, reduction="none")).sum()
            inputs = tuple(weights.values())
            slopes = torch.autograd.grad(loss, inputs, create_graph=True)
            for number, (weight, slope) in enumerate(zip(inputs, slopes, strict=True)):
                for _ in range(probes):
                    signs = torch.randint(0, 2, weight.shape, generator=generator).mul_(2).sub_(1).to(weight.dtype)
                    (bent,) = torch.autograd.grad(slope, weight, signs, retain_graph=True)
                    total[number] += float((signs * bent).sum()) / probes
    return total
