"""What calibration gives back: the plan, everything that led to it, and every way to hand it over."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import fx, nn

from cfptq.allocation import AllocationGap, BitAllocation, Budget, LayerScores, MeasuredScores, compare_allocations
from cfptq.auditing import MarginEstimate, estimate_margins
from cfptq.backends import onnxruntime as ort_backend
from cfptq.backends.matmul_nbits import build_weight_only_model, with_float_activations
from cfptq.backends.prepared_model import build_prepared_module, warn_about_two_step_input
from cfptq.backends.quantize_static import RowReader, build_quantize_static_arguments
from cfptq.errors import CfptqError, DataError, FileError, ModelError, SaturationWarning
from cfptq.io.atomic import atomic_folder, atomic_write, check_replaceable
from cfptq.network import INPUT, OUTPUT, Head, Network, Predictor, as_predictor, rename_tensors
from cfptq.network.head import check_threshold, decisions
from cfptq.network.onnx.session import describe_saturation
from cfptq.network.predictor import decided_otherwise_by_default
from cfptq.network.serialize import NETWORK_FILES, deserialize_network, digest, serialize_network
from cfptq.pipeline.bit_search import FewestBits
from cfptq.pipeline.group_weighting import WorstGroup
from cfptq.pipeline.method import Method
from cfptq.pipeline.pareto import Pareto, pareto_curve
from cfptq.quantize import COUNTERFACTUAL, CalibrationSet, QuantizationPlan, fake_quantize_network, keep_first_points
from cfptq.quantize.plan import PLAN_FILES
from cfptq.quantize.repair import Repair
from cfptq.recourse import RecourseBatch
from cfptq.training import History

if TYPE_CHECKING:
    from torch.ao.quantization import QConfigMapping

    from cfptq.backends.neural_compressor import PlanConfig
    from cfptq.backends.pt2e import PlanQuantizer

#: Version of the saved form.
SCHEMA = 1

#: The files that a saved result may hold.
RESULT_FILES = (
    "result.json",
    *PLAN_FILES,
    *(f"network/{name}" for name in NETWORK_FILES),
    "calibration.safetensors",
    "teacher.safetensors",
)

#: Keys of result.json by which a saved result is told from another's files.
RESULT_KEYS = ("allocation", "sensitivity")

#: The twin and the file agree when this share of rows is within TOLERANCE in the logits (one-step rounding ties may differ).
AGREEMENT = 0.999
TOLERANCE = 1e-3
#: Difference of probabilities that float32 cannot tell apart near 0 and 1.
SATURATION = 1e-6


@dataclass(frozen=True)
class Result:
    """A calibrated quantization.

    Attributes:
        network: the captured full-precision network.
        plan: integers, scales, biases and activation formats.
        allocation: bits per layer.
        sensitivity: the layer scores that the allocation was made from.
        head: what the model puts out.
        threshold: decision threshold of a binary model, or None for the arg max.
        calibration: the rows that were calibrated on; None where the result was saved without them.
        teacher: the teacher's recourse on those rows; None where the method looked at none.
        method: how the plan was made; None where it was saved and a part was the user's own function.
        budget: what the allocation was made for.
        pinned: layer name -> width that it was told to keep.
        repair: what the final repair did, with its effect on people set aside; None without repair.
        fewest_bits: what is known about the limit on Validity Drop that the bits were chosen by; None where a budget was given.
        worst_group: Validity Drop by group before and after steering; None without groups.
        training: what training did, epoch by epoch; None where the method trains nothing.
        tensor_names: what exported files call their input and output; a model that came as ONNX keeps its own.
    """

    network: Network
    plan: QuantizationPlan
    allocation: BitAllocation
    sensitivity: LayerScores
    head: Head
    threshold: float | None
    calibration: CalibrationSet | None
    teacher: RecourseBatch | None
    method: Method | None = None
    budget: Budget | None = None
    pinned: Mapping[str, int] = field(default_factory=dict)
    repair: Repair | None = None
    fewest_bits: FewestBits | None = None
    worst_group: WorstGroup | None = None
    training: History | None = None
    tensor_names: tuple[str, str] = (INPUT, OUTPUT)

    @property
    def bits(self) -> dict[str, int]:
        """Width of each quantized layer, by name."""
        return self.plan.bits

    @property
    def skipped(self) -> dict[str, str]:
        """Layers that were left in float, and why."""
        return dict(self.network.skipped)

    @property
    def activation_bits(self) -> int:
        """The widest format among the hidden tensors that feed quantized layers; 32 where one stays in float."""
        hidden = [form.bits for form in self.plan.activations if form.tensor != self.network.input_name]
        return max(hidden, default=self.input_bits)

    @property
    def input_bits(self) -> int:
        """The format of the model's input; 32 where it stays in float, or feeds no quantized layer directly."""
        return next((form.bits for form in self.plan.activations if form.tensor == self.network.input_name), 32)

    @property
    def input_format(self) -> str:
        """What the model's input becomes: "float", "8-bit", "16-bit" or "two-step"; ``plan.input_choice`` says why."""
        form = next((form for form in self.plan.activations if form.tensor == self.network.input_name), None)
        if form is None or form.is_float:
            return "float"
        return f"{form.bits}-bit" if form.is_affine else "two-step"

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {bits}" for name, bits in self.bits.items())
        left = "".join(f"; {name} left in float: {why}" for name, why in self.skipped.items())
        held = "" if self.fewest_bits is None else f"; {self.fewest_bits}"
        hidden = "float" if self.activation_bits == 32 else f"{self.activation_bits}-bit"
        return (
            f"{self.plan.method}: {self.plan.average_bits:.2f} bits on average ({layers}), {self.input_format} input, "
            f"{hidden} hidden activations{left}{held}"
        )

    def __repr__(self) -> str:
        return f"<Result {self}>"

    @cached_property
    def allocation_gap(self) -> AllocationGap:
        """What the paper's greedy rule would leave of the same budget, by the same scores."""
        budget = self.budget or Budget.total(self.allocation.total_bits)
        return compare_allocations(self.sensitivity, budget, self.plan.candidate_widths, self.pinned)

    def pareto(self, *, held_out: bool = False, progress: bool = True) -> Pareto:
        """Validity Drop against average bits, from the scores at hand: every budget's allocation rounded and measured on the twin.

        An estimate on calibration people. ``held_out`` measures on every fourth of them and leaves those out of the rounding.

        Raises:
            DataError: the result has no calibration rows or recourse (saved with ``rows=False``, or a method that looks at none).
            ModelError: it was trained; or it was loaded, and its method held the user's own function.
        """
        if self.training is not None:
            raise ModelError("a trained result has no curve: every budget would be a training of its own; use cfptq.calibrate(…).pareto()")
        calibration, people = self._people("a Pareto curve")
        if self.method is None:
            raise ModelError("this result was saved with a method of the user's own, which no file holds; calibrate again for its curve")
        return pareto_curve(
            self.network,
            calibration,
            people,
            self.sensitivity,
            self.method,
            self.allocation,
            self.plan,
            head=self.head,
            threshold=self.threshold,
            pinned=self.pinned,
            held_out=held_out,
            progress=progress,
        )

    def estimate_margins(self, *, radius: float = 0.1, samples: int = 16, progress: bool = True) -> MarginEstimate:
        """Prop. 5.1 at the calibration recourse points with measured ε; see :func:`cfptq.auditing.estimate_margins`.

        Points that the full-precision model itself refuses are left out.

        Raises:
            DataError: as :meth:`pareto`.
        """
        _, people = self._people("an estimate of Prop. 5.1")
        points = people.origin == COUNTERFACTUAL
        rows, target = people.rows[points], people.target[points]
        example = torch.zeros(2, *self.network.input_shape)
        f, f_q = (
            as_predictor(module, example=example, head=self.head, threshold=self.threshold)
            for module in (self.network.graph, self.module())
        )
        kept = f.logits(rows).argmax(dim=1) == target
        return estimate_margins(f, f_q, rows[kept], target[kept], radius=radius, samples=samples, seed=self.plan.seed, progress=progress)

    @cached_property
    def estimated_fraction(self) -> float:
        """Share of the calibration recourse points at which Prop. 5.1 holds with measured ε: an estimate, for eq. 61 is a lower bound.

        It is about the method's own recourse points: of ``faithful``, where projected-gradient steps first reach the target. Minimal-cost
        recourse at 0.5 ends on the boundary itself, where no margin is left to be kept.
        """
        return self.estimate_margins().fraction

    def _people(self, purpose: str) -> tuple[CalibrationSet, CalibrationSet]:
        """The calibration rows, and those among them that recourse is judged by."""
        if self.calibration is None:
            raise DataError(f"{purpose} needs the calibration rows, and this result was saved without them; save it with rows=True")
        people = None if self.teacher is None else keep_first_points(self.calibration, len(self.teacher))
        if people is None or not bool((people.origin == COUNTERFACTUAL).any()):
            raise DataError(
                f"{purpose} needs recourse points, and {self.plan.method!r} calibrated on none: nobody was rejected, or factual rows only"
            )
        return self.calibration, people

    def module(self) -> fx.GraphModule:
        """The fake-quantized twin: computes with the plan's integers, differentiable in its input."""
        return fake_quantize_network(self.network, self.plan)

    def prepared_model(self) -> nn.Module:
        """The float32 model whose weights already lie on the plan's grid, BatchNorm folded and biases corrected, layers under their names.

        All hand-overs to PyTorch's toolchains apply to it and refuse any other model.
        """
        return build_prepared_module(self.network, self.plan)

    def qconfig_mapping(self) -> QConfigMapping:
        """For PyTorch's ``prepare_fx`` and ``convert_fx`` on :meth:`prepared_model`; see :mod:`cfptq.backends.fx`."""
        from cfptq.backends.fx import build_qconfig_mapping

        warn_about_two_step_input(self.plan)
        return build_qconfig_mapping(self.network, self.plan)

    def pt2e_quantizer(self) -> PlanQuantizer:
        """For torchao's ``prepare_pt2e`` and ``convert_pt2e`` on :meth:`prepared_model`; see :mod:`cfptq.backends.pt2e`."""
        from cfptq.backends.pt2e import PlanQuantizer

        warn_about_two_step_input(self.plan)
        return PlanQuantizer(self.network, self.plan)

    def neural_compressor_config(self) -> PlanConfig:
        """For Neural Compressor's ``prepare``, ``convert`` and ``autotune``; see :mod:`cfptq.backends.neural_compressor`."""
        from cfptq.backends.neural_compressor import PlanConfig

        warn_about_two_step_input(self.plan)
        return PlanConfig(self.network, self.plan)

    def quantize_static_arguments(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Keywords for ONNX Runtime's ``quantize_static(path, out, reader, **keywords)``, ``path`` written by :meth:`prepared_onnx`."""
        return build_quantize_static_arguments(self.network, self.plan, path)

    def calibration_reader(self) -> RowReader:
        """The calibration rows as the reader that ``quantize_static`` asks for (with our keywords it takes nothing from them).

        Raises:
            DataError: the result was saved without its rows.
        """
        if self.calibration is None:
            raise DataError("this result was saved without its calibration rows; give quantize_static a reader of your own")
        return RowReader(self.calibration.rows, self.tensor_names[0])

    def prepared_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the prepared model as ONNX, for ONNX Runtime's own quantizer."""
        _write(self._named(ort_backend.build_prepared_onnx_model(self.network, self.plan)), path)

    def onnx_model(self, *, packed: bool = True, weight_only: bool = False, opset: int = ort_backend.OPSET_INT2) -> onnx.ModelProto:
        """The quantized model as ONNX, in memory; see :meth:`to_onnx`."""
        decision = {"cfptq.head": self.head.value, "cfptq.threshold": "" if self.threshold is None else repr(self.threshold)}
        if weight_only:
            return self._named(build_weight_only_model(self.network, self.plan, decision))
        return self._named(ort_backend.to_onnx_model(self.network, self.plan, decision, packed=packed, opset=opset))

    def to_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        packed: bool = True,
        weight_only: bool = False,
        opset: int = ort_backend.OPSET_INT2,
        check: bool = False,
    ) -> None:
        """Write the quantized model: int8 activations, weights stored in 2, 4 or 8 bits, dynamic batch, opset 21 where that will do.

        Args:
            path: file to write, whole or not at all.
            packed: store narrow weights in INT2 and INT4 (ONNX Runtime 1.23 or later); False stores all as INT8.
            weight_only: ONNX Runtime's MatMulNBits instead: float activations, whatever the plan's; for large models at batch 1.
            opset: the newest that the runtime reads: below 25 there is no INT2, below 21 no INT4, and the next wider type serves.
            check: run the file, without saturating int8 products, and compare it with the twin before it is put in place. Where ONNX
                Runtime's default session decides calibration rows otherwise on this processor, a :class:`cfptq.errors.SaturationWarning`
                says so.

        Raises:
            ModelError: the file disagrees with the twin (``check=True``), or the opset lacks what the plan needs.
            FileError: the place cannot be written.
        """
        model = self.onnx_model(packed=packed, weight_only=weight_only, opset=opset)
        with atomic_write(path) as aside:
            aside.write_bytes(model.SerializeToString(deterministic=True))
            if check:
                self._check(aside, with_float_activations(self.plan) if weight_only else self.plan)

    def _named(self, model: onnx.ModelProto) -> onnx.ModelProto:
        rename_tensors(model, dict(zip((INPUT, OUTPUT), self.tensor_names, strict=True)))
        return model

    def _check(self, path: Path, plan: QuantizationPlan) -> None:
        generator = torch.Generator().manual_seed(self.plan.seed)
        rows = torch.randn(1024, *self.network.input_shape, generator=generator) if self.calibration is None else self.calibration.rows
        file = as_predictor(
            path, example=rows[:2], head=self.head, threshold=self.threshold, twin=fake_quantize_network(self.network, plan)
        )
        said, expected = file.logits(rows), file.surrogate(rows).detach()
        saturated = decided_otherwise_by_default(file, rows, decisions(said))
        difference = (said - expected).abs().amax(dim=1)
        # Probabilities that are 0 or 1 but for rounding have no logits to speak of.
        certain = (said.softmax(dim=1) - expected.softmax(dim=1)).abs().amax(dim=1) <= SATURATION
        within = float(((difference <= TOLERANCE) | certain).float().mean())
        if within < AGREEMENT:
            raise ModelError(
                f"the written model agrees with the plan on {within:.2%} of {len(rows)} rows only (largest difference "
                f"{float(difference.max()):.3g})"
            )
        if saturated:
            warnings.warn(describe_saturation("the written model", saturated, len(rows)), SaturationWarning, stacklevel=3)

    def predictor(self, path: str | os.PathLike[str]) -> Predictor:
        """The file at ``path``, run in ONNX Runtime, with the twin's gradients."""
        example = torch.zeros(2, *self.network.input_shape)
        return as_predictor(path, example=example, head=self.head, threshold=self.threshold, twin=self.module(), name=self.plan.method)

    def save(self, folder: str | os.PathLike[str], *, rows: bool = True) -> None:
        """Write everything into a ``folder`` of its own; :func:`cfptq.load` reads it without the original model.

        Args:
            folder: new, empty, or an earlier saved result, which is replaced whole, or left as it was if anything fails.
            rows: keep the calibration rows and the teacher's recourse. They are people's data: False leaves them out.

        Raises:
            FileError: ``folder`` is a file, the working folder, or holds other files; nothing is written. Or it cannot be written.
        """
        head = {
            "schema": SCHEMA,
            "head": self.head.value,
            "threshold": self.threshold,
            "allocation": asdict(self.allocation),
            "sensitivity": asdict(self.sensitivity),
            "method": None if self.method is None else self.method.to_dict(),
            "budget": None if self.budget is None else asdict(self.budget),
            "pinned": dict(self.pinned),
            "tensor_names": list(self.tensor_names),
            "repair": None if self.repair is None else self.repair.to_dict(),
            "fewest_bits": None if self.fewest_bits is None else self.fewest_bits.to_dict(),
            "worst_group": None if self.worst_group is None else self.worst_group.to_dict(),
            "training": None if self.training is None else self.training.to_dict(),
        }
        with atomic_folder(folder, RESULT_FILES, RESULT_KEYS) as aside:
            (aside / "result.json").write_text(json.dumps(head, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
            self.plan.write_into(aside)
            (aside / "network").mkdir()
            for name, content in serialize_network(self.network).items():
                (aside / "network" / name).write_bytes(content)
            if rows and self.calibration is not None:
                self.calibration.save(aside / "calibration.safetensors")
            if rows and self.teacher is not None:
                self.teacher.save(aside / "teacher.safetensors")


def check_save_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse, before the work, a folder that :meth:`Result.save` would refuse after it.

    Raises:
        FileError: as :meth:`Result.save`.
    """
    check_replaceable(folder, RESULT_FILES, RESULT_KEYS)


def load(folder: str | os.PathLike[str]) -> Result:
    """Read what :meth:`Result.save` wrote: a Result that exports without the original model.

    Raises:
        FileError: a file is missing, cut off, altered, or not what it should be. Nothing is unpickled.
    """
    place = Path(folder)
    try:
        head = json.loads((place / "result.json").read_bytes())
        if head["schema"] != SCHEMA:
            raise FileError(f"{place}/result.json has schema {head['schema']}; this version reads schema {SCHEMA}: upgrade cfptq")
        calibration, teacher = place / "calibration.safetensors", place / "teacher.safetensors"
        result = Result(
            network=deserialize_network({name: (place / "network" / name).read_bytes() for name in NETWORK_FILES}, f"{place}/network"),
            plan=QuantizationPlan.load(place),
            allocation=BitAllocation(**head["allocation"]),
            sensitivity=_scores(head["sensitivity"]),
            head=Head(head["head"]),
            threshold=head["threshold"],
            calibration=CalibrationSet.load(calibration) if calibration.exists() else None,
            teacher=RecourseBatch.load(teacher) if teacher.exists() else None,
            **_told(head),
        )
    except OSError as error:
        raise FileError(f"cannot read a saved result in {place}: {error.strerror}; give a folder that Result.save wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{place}/result.json is not a whole saved result ({error}); save it again") from error
    except FileError:
        raise
    except CfptqError as error:
        raise FileError(f"{place} is not a whole saved result ({error}); save it again") from error
    try:
        check_threshold(result.threshold)
    except ModelError as error:
        raise FileError(f"{place}/result.json was changed ({error}); save the result again") from error
    if result.allocation.by_layer() != result.plan.bits:
        raise FileError(f"{place}/result.json allocates other bits than {place}/plan.json has: one was changed; save the result again")
    if result.plan.network != digest(result.network):
        raise FileError(f"{place} holds a plan and a network that do not belong together; save the result again")
    return result


def _told(head: dict[str, Any]) -> dict[str, Any]:
    """What a result tells about how it was made; absent from files of earlier versions."""
    makers = {
        "method": Method.from_dict,
        "budget": lambda it: Budget(**it),
        "repair": Repair.from_dict,
        "fewest_bits": FewestBits.from_dict,
        "worst_group": WorstGroup.from_dict,
        "training": History.from_dict,
    }
    plain = {"pinned": head.get("pinned", {}), "tensor_names": tuple(head.get("tensor_names", (INPUT, OUTPUT)))}
    return plain | {name: make(head[name]) for name, make in makers.items() if head.get(name) is not None}


def _scores(content: dict[str, Any]) -> LayerScores:
    return MeasuredScores(**content) if "damage" in content else LayerScores(**content)


def _write(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as aside:
        aside.write_bytes(model.SerializeToString(deterministic=True))
