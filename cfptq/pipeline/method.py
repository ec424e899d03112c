"""A method: which rows calibrate, what scores the layers, who spends the budget, how weights are rounded."""

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
from cfptq.network import Head, Network
from cfptq.quantize import (
    Activations,
    InputBits,
    QuantizationPlan,
    Rounding,
    quantize,
    round_by_margins,
    round_compensated,
    round_nearest,
    round_nearest_full_range,
)
from cfptq.quantize.calibration_set import CalibrationSet

T = TypeVar("T", bound=Callable[..., object])

#: Scores, allocators and rounding rules that a method may name instead of passing one.
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
ALLOCATORS: Mapping[str, Allocator] = MappingProxyType(
    {"greedy": allocate_greedily, "exact": allocate_exactly, "uniform": allocate_uniformly}
)
ROUNDINGS: Mapping[str, Rounding] = MappingProxyType(
    {"nearest": round_nearest, "nearest-full-range": round_nearest_full_range, "compensated": round_compensated, "margin": round_by_margins}
)

#: Groups of people: a feature's name, or a function from rows (N, ...) to one label each.
Groups = str | Callable[[torch.Tensor], Sequence[Any]]


@dataclass(frozen=True)
class Method:
    """How a model is quantized. Every preset of :data:`METHODS` is one; a user may pass her own to ``calibrate``.

    Attributes:
        name: stands in results, plans and files.
        rows: "factual" calibrates on X_cal, "augmented" on U_cal = X_cal ∪ {x + δ} (eq. 21), "boundary" on X_cal and on points where
            recourse ends, every row weighted by how near its decision is.
        score: "factual" or "counterfactual" (eq. 23), "margin" (measured for each width), "surrogate" (eq. 71), "hessian-trace",
            "output-distance", or a callable of the type ``cfptq.allocation.Score``.
        allocator: "greedy" (eq. 24), "exact", "uniform", or a callable of the type ``cfptq.allocation.Allocator``.
        rounding: "nearest" (scales by eq. 22), "nearest-full-range", "compensated" (each layer's own output), "margin" (compensated, then
            by the decision's margin; ``sequential`` only), or a callable of the type ``cfptq.quantize.Rounding``.
        activations: bits of the tensors that feed quantized layers.
        equalize: move hidden channels' scales between the layers around them first.
        sequential: let each layer make up for what the quantized layers before it spoil.
        repair: at the end, adjust integers and bias of the last layer until calibration recourse that fails holds; see
            :mod:`cfptq.quantize.repair`.
        groups: weigh the rows of each group so that the worst group's Validity Drop falls (eq. 33): a feature's name, or a function from
            rows (N, ...) to N labels.
    """

    name: str
    rows: Literal["factual", "augmented", "boundary"] = "augmented"
    score: str | Score = "counterfactual"
    allocator: str | Allocator = "greedy"
    rounding: str | Rounding = "nearest"
    activations: Activations = field(default_factory=Activations)
    equalize: bool = False
    sequential: bool = False
    repair: bool = False
    groups: Groups | None = None

    def __post_init__(self) -> None:
        if self.rows not in ("factual", "augmented", "boundary"):
            raise ConfigurationError(f"method {self.name!r}: rows must be 'factual', 'augmented' or 'boundary', not {self.rows!r}")
        for part, known in (("score", SCORES), ("allocator", ALLOCATORS), ("rounding", ROUNDINGS)):
            choice = getattr(self, part)
            if isinstance(choice, str) and choice not in known:
                names = ", ".join(sorted(known))
                raise ConfigurationError(f"method {self.name!r}: {part} {choice!r} is unknown; choose one of {names}, or pass a callable")
        if self.rounding in ("margin", round_by_margins) and not self.sequential:
            raise ConfigurationError(
                f"method {self.name!r}: rounding 'margin' goes from layer to layer; set sequential=True, or round 'compensated'"
            )
        if not (self.groups is None or isinstance(self.groups, str) or callable(self.groups)):
            raise ConfigurationError(
                f"method {self.name!r}: groups must be a feature's name, or a function from rows (N, ...) to one label each, not a "
                f"{type(self.groups).__name__}"
            )

    @property
    def needs_recourse(self) -> bool:
        """Whether the method looks at counterfactual points at all."""
        return self.rows != "factual" or self.score_function is not score_by_factual_gradient

    @property
    def score_function(self) -> Score:
        return _chosen(self.score, SCORES)

    @property
    def allocate(self) -> Allocator:
        return _chosen(self.allocator, ALLOCATORS)

    @property
    def round(self) -> Rounding:
        return _chosen(self.rounding, ROUNDINGS)

    def with_activations(self, bits: int | None, input_bits: InputBits) -> Method:
        """The same method with other activation formats; None keeps what it has."""
        kept = self.activations
        return replace(self, activations=replace(kept, bits=bits or kept.bits, input_bits=input_bits or kept.input_bits))

    def plan(
        self,
        network: Network,
        calibration: CalibrationSet,
        allocation: BitAllocation,
        *,
        head: Head,
        threshold: float | None,
        seed: int = 0,
        portable: bool = False,
        progress: bool = True,
    ) -> QuantizationPlan:
        """Round ``network`` at the widths of ``allocation`` by this method's rules; neither repaired nor steered towards a group."""
        return quantize(
            network,
            calibration,
            allocation.by_layer(),
            method=self.name,
            seed=seed,
            rounding=self.round,
            activations=self.activations,
            equalize=self.equalize,
            sequential=self.sequential,
            head=head,
            threshold=threshold,
            portable=portable,
            progress=progress,
        )

    def to_dict(self) -> dict[str, Any] | None:
        """Plain values for a file; None where a part is the user's own function, which no file can hold."""
        parts = (self.score, self.allocator, self.rounding)
        named = all(isinstance(part, str) for part in parts) and (self.groups is None or isinstance(self.groups, str))
        return asdict(self) if named else None

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Method:
        """What :meth:`to_dict` gave."""
        return Method(**{**content, "activations": Activations(**content["activations"])})


#: The default, and the paper's training-free variants (Appendix F), by name.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                "faithful",
                rows="boundary",
                score="margin",
                allocator="exact",
                rounding="margin",
                activations=Activations(input_bits=None, clip=False),
                equalize=True,
                sequential=True,
            ),
            Method("ptq", rows="factual", score="factual", allocator="uniform"),
            Method("mixed-ptq", rows="factual", score="factual"),
            Method("cf-ptq-calibration", rows="augmented", score="factual"),
            Method("cf-ptq-allocation", rows="factual", score="counterfactual"),
            Method("cf-ptq", rows="augmented", score="counterfactual"),
        )
    }
)


def as_method(method: str | Method) -> Method:
    """The preset of that name, or the method itself.

    Raises:
        ConfigurationError: no preset has that name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ConfigurationError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}, or pass a cfptq.Method")
    return METHODS[method]


def _chosen(choice: str | T, known: Mapping[str, T]) -> T:
    if isinstance(choice, str):
        return known[choice]
    if not callable(choice):
        raise CfptqError(f"{choice!r} is neither a name nor a callable")
    return choice
