"""The rules that a method of quantization without training consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch

from cfptq.allocation import (
    Allocator,
    BitAllocation,
    Score,
    allocate_exactly,
    allocate_greedily,
    allocate_uniformly,
    score_by_counterfactual_gradient,
    score_by_exponential_surrogate,
    score_by_factual_gradient,
    score_by_hessian_trace,
    score_by_margin_change,
    score_by_output_distance,
)
from cfptq.errors import CfptqError, ConfigurationError
from cfptq.io.arguments import is_number
from cfptq.network import DecisionRule, Network, target_margin
from cfptq.quantize import (
    STRUCTURE,
    Activations,
    Granularity,
    InputBits,
    MarginTarget,
    QuantizationPlan,
    Rounding,
    check_keep,
    equalize_on_calibration,
    find_candidate_widths,
    quantize,
    round_by_margins,
    round_compensated,
    round_nearest,
    round_nearest_full_range,
    sweep_plan,
)
from cfptq.quantize.calibration_set import FACTUAL, CalibrationSet

T = TypeVar("T", bound=Callable[..., object])

#: Name -> score of a method.
SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "factual": score_by_factual_gradient,
        "counterfactual": score_by_counterfactual_gradient,
        "margin": score_by_margin_change,
        "surrogate": score_by_exponential_surrogate,
        "hessian-trace": score_by_hessian_trace,
        "output-distance": score_by_output_distance,
    }
)

#: Name -> allocator of a method.
ALLOCATORS: Mapping[str, Allocator] = MappingProxyType(
    {"greedy": allocate_greedily, "exact": allocate_exactly, "uniform": allocate_uniformly}
)

#: Name -> rounding rule of a method.
ROUNDINGS: Mapping[str, Rounding] = MappingProxyType(
    {"nearest": round_nearest, "nearest-full-range": round_nearest_full_range, "compensated": round_compensated, "margin": round_by_margins}
)

#: Largest reserve, in median margins.
MAX_RESERVE = 10.0

#: Groups of people: a feature's name, or a function from rows (N, ...) to one label each.
Groups = str | Callable[[torch.Tensor], Sequence[Any]]


@dataclass(frozen=True)
class Method:
    """A rule for each step of quantization without training.

    The presets in ``cfptq.pipeline.method_presets.METHODS`` are such methods. A user may pass their own to ``calibrate``.

    Attributes:
        name: name in results, plans and files.
        rows: "factual" calibrates on X_cal, and "augmented" on U_cal = X_cal ∪ {x + δ} (eq. 21). "boundary" calibrates on X_cal and the
            points where recourse ends, each row weighted by how near its decision is to the boundary.
        score: "factual" or "counterfactual" (eq. 23), "margin" (measured at each width), "surrogate" (eq. 71), "hessian-trace",
            "output-distance", or a callable of the type ``cfptq.allocation.Score``.
        granularity: what has a width of its own, "layer" (the paper's) or "channel", an output channel of a layer.
        allocator: "greedy" (eq. 24), "exact", "uniform", or a callable of the type ``cfptq.allocation.Allocator``.
        rounding: "nearest" (scales by eq. 22), "nearest-full-range", "compensated" (keeps each layer's output), "margin" (compensated,
            then by the decision's margin; needs ``sequential``), or a callable of the type ``cfptq.quantize.Rounding``.
        activations: formats of the tensors that feed quantized layers.
        minimal_cost_points: minimal-cost recourse is among the rows "boundary". It takes most of the time on small networks, and does not
            lower the error of decisions near the boundary.
        both_sides: generated rows on both sides of the boundary are among the rows "boundary": recombined people, their recourse, and
            points on the way back from it. At most 4,096 rows count then, drawn by weight.
        drops_channels: 0 bits are a candidate for channels that can be dropped together with the columns that they feed. It needs widths of
            channels.
        split_inputs: half of the input columns of a linear layer with float input have one bit more than their channel, and the others one
            bit less; see ``cfptq.quantize.split_inputs``. It needs widths of channels and the score "margin".
        equalize: scale hidden channels first, so that the weights around them use their range.
        equalization_exponent: α of the scale s = a^α / w^(1-α) of a channel, from 0 to 1, with a its largest activation and w the largest
            weight that it meets. 0.5 makes both equal. More lets channels share the activations' step better, at the weights' expense.
        sequential: let each layer compensate for the error of the quantized layers before it.
        sweeps: sweeps over all layers at the end, on the margins of the whole quantized model; see ``cfptq.quantize.sweep_plan``.
        reserve: what the sweeps add to the margins of rows that the full-precision model accepts, as a share of the factual rows' median
            margin. Recourse near the boundary then survives more often, at the price of accepting people whom the full-precision model
            refuses. It needs sweeps.
        repair: adjust integers and bias of the last layer at the end, until calibration recourse that fails holds; see
            ``cfptq.quantize.repair``.
        groups: reweight the groups of people so that the worst group's Validity Drop falls (eq. 33): a feature's name, or a function
            from rows (N, ...) to N labels. None weighs all alike.
        keep: structure of the weights that is kept. "zeros" keeps every exact zero at 0, and "signs" keeps every integer from the opposite
            sign of its weight. The default is both. An empty tuple keeps nothing.
        drops_extreme_rows: calibrate without the rows that alone set the range of a column or of a hidden tensor, such as a slip of the
            decimal point; see ``cfptq.quantize.extreme_rows``. Every method warns of them.
    """

    name: str
    rows: Literal["factual", "augmented", "boundary"] = "augmented"
    score: str | Score = "counterfactual"
    granularity: Granularity = "layer"
    allocator: str | Allocator = "greedy"
    rounding: str | Rounding = "nearest"
    activations: Activations = field(default_factory=Activations)
    minimal_cost_points: bool = True
    both_sides: bool = False
    drops_channels: bool = False
    split_inputs: bool = False
    equalize: bool = False
    equalization_exponent: float = 0.5
    sequential: bool = False
    sweeps: int = 0
    reserve: float = 0.0
    repair: bool = False
    groups: Groups | None = None
    keep: tuple[str, ...] = STRUCTURE
    drops_extreme_rows: bool = False

    def __post_init__(self) -> None:
        if self.rows not in ("factual", "augmented", "boundary"):
            raise ConfigurationError(f"rows of method {self.name!r} must be 'factual', 'augmented' or 'boundary', got {self.rows!r}.")
        if self.granularity not in ("layer", "channel"):
            raise ConfigurationError(f"granularity of method {self.name!r} must be 'layer' or 'channel', got {self.granularity!r}.")
        for part, known in (("score", SCORES), ("allocator", ALLOCATORS), ("rounding", ROUNDINGS)):
            choice = getattr(self, part)
            if isinstance(choice, str) and choice not in known:
                names = ", ".join(sorted(known))
                raise ConfigurationError(f"{part} of method {self.name!r} must be a callable or one of {names}, got {choice!r}.")
        if self.rounding in ("margin", round_by_margins) and not self.sequential:
            raise ConfigurationError(
                f"rounding 'margin' of method {self.name!r} requires sequential=True. Set it, or choose rounding='compensated'."
            )
        if self.drops_channels and self.granularity != "channel":
            raise ConfigurationError(
                f"drops_channels of method {self.name!r} requires granularity='channel'. Set it, or drops_channels=False."
            )
        if self.split_inputs and not (self.granularity == "channel" and self.score in ("margin", score_by_margin_change)):
            raise ConfigurationError(
                f"split_inputs of method {self.name!r} requires granularity='channel' and score='margin'. Set both, or split_inputs=False."
            )
        if not 0 <= self.equalization_exponent <= 1:
            raise ConfigurationError(
                f"equalization_exponent of method {self.name!r} must be from 0 to 1, got {self.equalization_exponent}. 0.5 is usual."
            )
        if not (isinstance(self.sweeps, int) and self.sweeps >= 0):
            raise ConfigurationError(f"sweeps of method {self.name!r} must be a whole number from 0, got {self.sweeps!r}.")
        if not (is_number(self.reserve) and 0 <= self.reserve <= MAX_RESERVE):
            raise ConfigurationError(f"reserve of method {self.name!r} must be a number from 0 to {MAX_RESERVE:g}, got {self.reserve!r}.")
        if self.reserve and not self.sweeps:
            raise ConfigurationError(f"reserve of method {self.name!r} requires sweeps. Set sweeps=2, or choose method='faithful'.")
        object.__setattr__(self, "keep", check_keep(self.keep, f"Method {self.name!r}: "))
        if not (self.groups is None or isinstance(self.groups, str) or callable(self.groups)):
            raise ConfigurationError(
                f"groups of method {self.name!r} must be a feature's name or a function from rows (N, ...) to one label each, got a "
                f"{type(self.groups).__name__}."
            )

    @property
    def needs_recourse(self) -> bool:
        """True where the method uses counterfactual points."""
        return self.rows != "factual" or self.score_function is not score_by_factual_gradient

    @property
    def score_function(self) -> Score:
        """The score, looked up by name where it is a name."""
        return _look_up(self.score, SCORES)

    @property
    def allocate(self) -> Allocator:
        """The allocator, looked up by name where it is a name."""
        return _look_up(self.allocator, ALLOCATORS)

    @property
    def round(self) -> Rounding:
        """The rounding rule, looked up by name where it is a name."""
        return _look_up(self.rounding, ROUNDINGS)

    def with_activations(self, bits: int | None, input_bits: InputBits) -> Method:
        """Return the same method with other activation formats. None keeps the method's own."""
        kept = self.activations
        return replace(self, activations=replace(kept, bits=bits or kept.bits, input_bits=input_bits or kept.input_bits))

    def find_candidate_widths(self, network: Network, portable: bool) -> dict[str, tuple[int, ...]]:
        """Return the candidate widths of each layer, or of its channels, by layer name, ascending.

        Args:
            network: the captured network.
            portable: results must be right on processors without VNNI too.
        """
        return self.restrict_widths(find_candidate_widths(network, self.activations, portable, self.granularity))

    def restrict_widths(self, widths: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return candidate widths without 0 bits unless the method drops channels.

        Args:
            widths: candidate widths by layer name.
        """
        return {name: tuple(bits for bits in own if bits or self.drops_channels) for name, own in widths.items()}

    def equalize_network(self, network: Network, calibration: CalibrationSet, decision: DecisionRule) -> Network:
        """Return the network whose channels ``plan`` rounds where some weights are coarser than activations."""
        if not self.equalize:
            return network
        coarse = {layer.name: 4 for layer in network.layers}
        return equalize_on_calibration(network, calibration, coarse, self.activations, self.equalization_exponent, decision)

    def plan(
        self,
        network: Network,
        calibration: CalibrationSet,
        allocation: BitAllocation,
        *,
        decision: DecisionRule,
        equalized: Network | None = None,
        seed: int = 0,
        portable: bool = False,
        progress: bool = True,
    ) -> QuantizationPlan:
        """Round ``network`` at the widths of ``allocation``, with neither repair nor reweighted groups.

        Args:
            network: the full-precision network.
            calibration: the calibration rows.
            allocation: bits of each layer.
            decision: head of the network's raw output and decision threshold.
            equalized: what ``equalize_network`` returned for the same rows, so that it is not computed again, or None.
            seed: seed that the plan records.
            portable: keep weights behind integer inputs within ±63.
            progress: whether a progress bar may be shown.
        """
        plan = quantize(
            network,
            calibration,
            allocation.by_layer(),
            method=self.name,
            seed=seed,
            rounding=self.round,
            activations=self.activations,
            equalize=self.equalize,
            equalized=equalized,
            equalization_exponent=self.equalization_exponent,
            sequential=self.sequential,
            decision=decision,
            fine_inputs=dict(zip(allocation.names, allocation.fine_inputs, strict=True)) if allocation.fine_inputs else None,
            portable=portable,
            keep=self.keep,
            progress=progress,
        )
        if self.sweeps:
            goal = MarginTarget.of(network, calibration, decision)
            if self.reserve:
                goal = goal.lift_accepted(self.reserve * _measure_median_margin(network, calibration, decision))
            plan = sweep_plan(network, plan, goal, decision, self.sweeps, progress)
        return plan

    def to_dict(self) -> dict[str, Any] | None:
        """Return plain values for a file, or None where a part is the user's own function, which no file can hold."""
        parts = (self.score, self.allocator, self.rounding)
        named = all(isinstance(part, str) for part in parts) and (self.groups is None or isinstance(self.groups, str))
        return asdict(self) if named else None

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Method:
        """Build a method from what ``to_dict`` returned. An older file without ``keep`` kept no structure, and had widths of layers."""
        return Method(**{"keep": (), **content, "activations": Activations(**content["activations"])})


def _measure_median_margin(network: Network, calibration: CalibrationSet, decision: DecisionRule) -> float:
    """Return the median |m| of the factual rows, in logits."""
    factual = calibration.origin == FACTUAL
    with torch.no_grad():
        margins = target_margin(decision.class_logits(network(calibration.rows[factual])), calibration.target[factual])
    return float(margins.abs().median())


def _look_up(choice: str | T, known: Mapping[str, T]) -> T:
    """Return the callable of that name, or the callable itself."""
    if isinstance(choice, str):
        return known[choice]
    if not callable(choice):
        raise CfptqError(f"score, allocator and rounding must be a name or a callable, got {choice!r}.")
    return choice
