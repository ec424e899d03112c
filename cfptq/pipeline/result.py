"""The result of a quantization, with everything that led to it and every way to use it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import onnx
import pandas as pd
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, fx, nn

from cfptq.allocation import AllocationGap, BitAllocation, Budget, LayerScores, compare_allocations
from cfptq.auditing import LayerwiseBound, MarginEstimate, RecourseProof, RecourseProver, bound_perturbation, estimate_margins
from cfptq.backends.onnxruntime import OPSET_INT2, Storage
from cfptq.backends.prepared_model import build_prepared_module
from cfptq.backends.quantize_static import RowReader, build_quantize_static_arguments
from cfptq.errors import DataError, ModelError
from cfptq.io.arguments import BOOLEAN, COUNT, PATH, check_arguments, number, one_of, optional
from cfptq.io.tables import as_html
from cfptq.network import INPUT, OUTPUT, DecisionRule, Head, Network, OnnxModule, Predictor, as_predictor
from cfptq.network.onnx.interface import OnnxInterface
from cfptq.network.several_inputs import InputPart, split_input
from cfptq.pipeline.fewest_bits import FewestBits
from cfptq.pipeline.group_weighting import WorstGroup
from cfptq.pipeline.handover import (
    build_neural_compressor_config,
    build_onnx,
    build_prepared_onnx,
    build_pt2e_quantizer,
    build_qconfig_mapping,
    write_checked_onnx,
    write_onnx,
)
from cfptq.pipeline.method import Method
from cfptq.pipeline.pareto import Pareto, trace_pareto_curve
from cfptq.pipeline.preprocessing import add_decision_outputs, put_preprocessing_before
from cfptq.pipeline.saving import read_result, write_result
from cfptq.quantize import (
    COUNTERFACTUAL,
    Bits,
    CalibrationSet,
    KeptStructure,
    QuantizationPlan,
    count_kept_structure,
    describe_bits,
    fake_quantize_network,
    keep_first_points,
)
from cfptq.quantize.repair import Repair
from cfptq.recourse import RecourseBatch
from cfptq.training import History

if TYPE_CHECKING:
    from torch.ao.quantization import QConfigMapping

    from cfptq.backends.neural_compressor import PlanConfig
    from cfptq.backends.pt2e import PlanQuantizer
    from cfptq.pipeline.classifier import QuantizedClassifier

#: Forms of the weights in an ONNX file.
STORAGE = one_of(get_args(Storage))


@dataclass(frozen=True)
class Result:
    """A quantized model.

    Attributes:
        network: the captured full-precision network.
        plan: integers, scales, biases and activation formats.
        allocation: bits of each layer.
        sensitivity: the layer scores that the allocation was made from.
        head: what the model puts out.
        threshold: decision threshold of a binary model, or None for the arg max.
        calibration: the calibration rows; None where the result was saved without them.
        teacher: the full-precision model's recourse on those rows; None where the method uses no recourse.
        method: the method; None for a trained result, and where it was saved with the user's own function.
        budget: what the allocation was made for.
        pinned: layer name -> bits that it had to have.
        repair: what the final repair did, with its effect on held-out people; None without repair.
        fewest_bits: the limit on Validity Drop that chose the bits, and its evidence; None where a budget was given.
        worst_group: Validity Drop by group before and after reweighting; None without groups.
        training: training history; None where the method trains nothing.
        remarks: sentences about calibration rows that alone set a range, and about decisions that large or small numbers change.
        tensor_names: names of input and output in exported files. A model that came as ONNX keeps its own.
        interface: types and further outputs of the ONNX file that the model came as; None where it has float32 rows and scores alone.
        inputs: inputs of a module that takes several, which exported files have too; None for other models.
        classes: classes of the scikit-learn model that was quantized, in the order of its scores; None for other models.
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
    remarks: tuple[str, ...] = ()
    tensor_names: tuple[str, str] = (INPUT, OUTPUT)
    interface: OnnxInterface | None = None
    classes: tuple[Any, ...] | None = None
    inputs: tuple[InputPart, ...] | None = None

    @property
    def decision(self) -> DecisionRule:
        """The head and the threshold as one value."""
        return DecisionRule(self.head, self.threshold)

    @property
    def bits(self) -> dict[str, Bits]:
        """Bits of each quantized layer by name, or a tuple with the bits of each output channel."""
        return self.plan.bits

    @property
    def skipped(self) -> dict[str, str]:
        """Layers that were left in float, each with the reason."""
        beside = () if self.interface is None else self.interface.in_float
        return dict(self.network.skipped) | dict.fromkeys(beside, "an output beside the scores, computed by the file's float nodes")

    @cached_property
    def structure(self) -> KeptStructure:
        """Counts of the zeros and signs of the network's weights that the plan keeps. ``plan.keep`` says which had to be."""
        return count_kept_structure(self.network, self.plan)

    @property
    def activation_bits(self) -> int:
        """Bits of the widest format among the hidden tensors that feed quantized layers, 32 where one stays in float."""
        hidden = [form.bits for form in self.plan.activations if form.tensor != self.network.input_name]
        return max(hidden, default=self.input_bits)

    @property
    def input_bits(self) -> int:
        """Bits of the model's input, 32 where it stays in float or feeds no quantized layer directly."""
        return next((form.bits for form in self.plan.activations if form.tensor == self.network.input_name), 32)

    @property
    def input_format(self) -> str:
        """Format of the model's input, "float", "8-bit", "16-bit" or "two-step". ``plan.input_choice`` gives the reason."""
        form = next((form for form in self.plan.activations if form.tensor == self.network.input_name), None)
        if form is None or form.is_float:
            return "float"
        return f"{form.bits}-bit" if form.is_affine else "two-step"

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {describe_bits(bits)}" for name, bits in self.bits.items())
        left = "".join(f"; {name} left in float: {why}" for name, why in self.skipped.items())
        held = "" if self.fewest_bits is None else f"; {self.fewest_bits}"
        hidden = "float" if self.activation_bits == 32 else f"{self.activation_bits}-bit"
        return (
            f"{self.plan.method}: {self.plan.average_bits:.2f} bits on average ({layers}), {self.input_format} input, "
            f"{hidden} hidden activations, keeps {' and '.join(self.plan.keep) or 'nothing'} of the weights, {self.decision}{left}{held}"
        )

    def __repr__(self) -> str:
        return f"<Result {self}>"

    def table(self) -> Table:
        """Return the layers as a Rich table, with the weights, bits and sensitivity of each."""
        kept = " and ".join(self.plan.keep) or "nothing"
        size = f"{self.plan.stored_bytes:,} stored bytes"
        title = Text(f"{self.plan.method}: {self.plan.average_bits:.2f} bits on average, {size}, keeps {kept} of the weights")
        table = Table("layer", "weights", "bits", "sensitivity", title=title)
        sensitivity = self.sensitivity.by_layer()
        sizes = dict(zip(self.allocation.names, self.allocation.parameters, strict=True))
        for name, bits in self.bits.items():
            table.add_row(Text(name), f"{sizes[name]:,}", describe_bits(bits), f"{sensitivity[name]:.4g}")
        for name, reason in self.skipped.items():
            table.add_row(Text(name), "", "float", Text(reason))
        return table

    @property
    def notes(self) -> list[str]:
        """Sentences about the scores, output, structure, training, groups, repair and the search for the fewest bits."""
        found = [f"Note: {self.sensitivity.note}"] if self.sensitivity.note else []
        found += self.remarks
        found += [f"Output: {self.decision}", str(self.structure)]
        if self.plan.granularity == "channel":
            found.append(
                "Widths belong to output channels. A packed ONNX file stores them so. Other toolchains hold a layer's integers in a type "
                "for its widest channel"
            )
        found += [self.teacher.note] if self.teacher is not None and self.teacher.note else []
        found += [f"Training: {self.training}"] if self.training is not None else []
        found += [str(part) for part in (self.interface, self.fewest_bits, self.worst_group, self.repair) if part is not None]
        return [f"{note[0].upper()}{note[1:].removesuffix('.')}." for note in found]

    def _repr_html_(self) -> str:
        return as_html(Group(self.table(), *map(Text, self.notes)))

    @cached_property
    def allocation_gap(self) -> AllocationGap:
        """Difference between this allocation and the paper's greedy one, for the same budget and scores."""
        budget = self.budget or Budget.total(self.allocation.total_bits)
        widths = self.plan.candidate_widths
        widths = widths if self.method is None else self.method.restrict_widths(widths)
        return compare_allocations(self.sensitivity, budget, widths, self.pinned)

    @check_arguments(held_out=BOOLEAN, progress=BOOLEAN)
    def pareto(self, *, held_out: bool = False, progress: bool = True) -> Pareto:
        """Trace boundary disagreement and Validity Drop against average bits. Both are estimates on calibration people.

        Every budget's allocation is rounded and measured on its fake-quantized module.

        Args:
            held_out: measure on every fourth person, and leave those people out of the rounding. False measures on all.
            progress: whether a progress bar may be shown.

        Raises:
            DataError: the result has no calibration rows or recourse (saved with ``rows=False``, or a method that uses none).
            ModelError: the result was trained, or it was loaded and its method held the user's own function.
        """
        if self.training is not None:
            raise ModelError(
                "pareto needs a result without training, because each budget would be a training of its own. Use cfptq.calibrate."
            )
        calibration, people = self._recourse_people("a Pareto curve")
        if self.method is None:
            raise ModelError("pareto needs the method, and this one held the user's own function, which no file holds. Calibrate again.")
        return trace_pareto_curve(
            self.network,
            calibration,
            people,
            self.sensitivity,
            self.method,
            self.allocation,
            self.plan,
            decision=self.decision,
            last_refused=None if self.teacher is None else self.teacher.last_refused,
            pinned=self.pinned,
            held_out=held_out,
            progress=progress,
        )

    @check_arguments(radius=number(), samples=COUNT, progress=BOOLEAN)
    def estimate_margins(self, *, radius: float = 0.1, samples: int = 16, progress: bool = True) -> MarginEstimate:
        """Estimate at which calibration recourse points Prop. 5.1 holds, with measured ε.

        Points that the full-precision model itself refuses are left out. See ``cfptq.auditing.estimate_margins``.

        Args:
            radius: radius of the ball around a point in which ε is measured, in columns' units.
            samples: random points in each ball.
            progress: whether a progress bar may be shown.

        Raises:
            DataError: the result has no calibration rows or recourse.
        """
        f, rows, target = self._granted_points("an estimate of Prop. 5.1")
        f_q = self._as_predictor(self.module())
        return estimate_margins(f, f_q, rows, target, radius=radius, samples=samples, seed=self.plan.seed, progress=progress)

    @check_arguments(radius=number())
    def prove_recourse(self, *, radius: float = 0.0) -> RecourseProof:
        """Prove at which calibration recourse points the quantized model decides the target, also within a radius.

        Points that the full-precision model itself refuses are left out. The proof counts the rounding of float sums in any order, so
        that it holds for the fake-quantized module and for exported files that hold the same integers and run without saturation. To
        prove something about a file and other people, see ``cfptq.auditing.RecourseProver``.

        Args:
            radius: radius of the ball around a point within which every deviation must keep the target, in columns' units. 0 takes the
                points alone.

        Raises:
            DataError: the result has no calibration rows or recourse.
            ModelError: the network has layers other than Linear, ReLU and similar ones.
        """
        _, rows, target = self._granted_points("a proof of recourse")
        return RecourseProver(self._as_predictor(self.module()), rows).prove(rows, target, radius=radius)

    @check_arguments(radius=number())
    def bound_perturbation(self, *, radius: float = 0.0) -> LayerwiseBound:
        """Bound ε at calibration recourse points by layerwise Lipschitz constants (eqs. 52 to 60), with each layer's share.

        See ``cfptq.auditing.bound_perturbation``.

        Args:
            radius: radius of the ball around a point, in columns' units. 0 takes the points alone.

        Raises:
            DataError: the result has no calibration rows or recourse.
            ModelError: the network is no chain of Linear and ReLU that puts out logits, or it has a layer in float.
        """
        _, rows, _ = self._granted_points("a bound of the logit perturbation")
        return bound_perturbation(self.network, self.plan, self.decision, rows, radius=radius)

    @cached_property
    def estimated_fraction(self) -> float:
        """Share of the calibration recourse points at which Prop. 5.1 holds with measured ε.

        It is an estimate, because eq. 61 is a lower bound. It is about the method's own recourse points, which for ``faithful`` are where
        projected-gradient steps first reach the target. Minimal-cost recourse at 0.5 ends on the boundary, where no margin is left.
        """
        return self.estimate_margins().fraction

    def _granted_points(self, purpose: str) -> tuple[Predictor, Tensor, Tensor]:
        """Return the full-precision model, and the calibration recourse points that it grants with their targets."""
        _, people = self._recourse_people(purpose)
        points = people.origin == COUNTERFACTUAL
        rows, target = people.rows[points], people.target[points]
        f = self._as_predictor(self.network.graph)
        kept = f.logits(rows).argmax(dim=1) == target
        return f, rows[kept], target[kept]

    def _as_predictor(self, module: nn.Module) -> Predictor:
        example = torch.zeros(2, *self.network.input_shape)
        return as_predictor(module, example=example, head=self.head, threshold=self.threshold)

    def _recourse_people(self, purpose: str) -> tuple[CalibrationSet, CalibrationSet]:
        """Return the calibration rows, and those among them that recourse is judged by."""
        if self.calibration is None:
            raise DataError(f"{purpose} needs the calibration rows, and this result was saved without them. Save it with rows=True.")
        people = None if self.teacher is None else keep_first_points(self.calibration, len(self.teacher))
        if people is None or not bool((people.origin == COUNTERFACTUAL).any()):
            raise DataError(
                f"{purpose} needs recourse points, and {self.plan.method!r} calibrated on none. Either nobody was rejected, "
                "or the method uses factual rows only."
            )
        return self.calibration, people

    def module(self) -> fx.GraphModule:
        """Return the fake-quantized module, which computes with the plan's integers and is differentiable in its input."""
        return fake_quantize_network(self.network, self.plan)

    @check_arguments(path=PATH)
    def predictor(self, path: str | os.PathLike[str]) -> Predictor:
        """Return the file at ``path``, run in ONNX Runtime, with the gradients of the fake-quantized module."""
        example = torch.zeros(2, *self.network.input_shape)
        return as_predictor(path, example=example, head=self.head, threshold=self.threshold, twin=self.module(), name=self.plan.method)

    def prepared_model(self) -> nn.Module:
        """Return the float32 model whose weights already lie on the plan's grid.

        BatchNorm is folded, channels are equalized, biases are corrected, and layers keep their names. All hand-overs to PyTorch's
        toolchains apply to this model and refuse any other.
        """
        return build_prepared_module(self.network, self.plan)

    def qconfig_mapping(self) -> QConfigMapping:
        """Return the argument of PyTorch's ``prepare_fx`` on ``prepared_model`` (``cfptq.backends.fx``)."""
        return build_qconfig_mapping(self.network, self.plan)

    def pt2e_quantizer(self) -> PlanQuantizer:
        """Return the argument of torchao's ``prepare_pt2e`` on ``prepared_model`` (``cfptq.backends.pt2e``)."""
        return build_pt2e_quantizer(self.network, self.plan)

    def neural_compressor_config(self) -> PlanConfig:
        """Return the argument of Neural Compressor's ``prepare`` and ``autotune`` (``cfptq.backends.neural_compressor``)."""
        return build_neural_compressor_config(self.network, self.plan)

    @check_arguments(path=PATH)
    def quantize_static_arguments(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return keywords for ONNX Runtime's ``quantize_static(path, out, reader, **keywords)``.

        Args:
            path: the file that ``prepared_onnx`` wrote.
        """
        return build_quantize_static_arguments(self.network, self.plan, path)

    def calibration_reader(self) -> RowReader:
        """Return the calibration rows as the reader that ``quantize_static`` asks for. Our keywords take no value from them.

        Raises:
            DataError: the result was saved without its rows.
        """
        if self.calibration is None:
            raise DataError(
                "calibration_reader needs the calibration rows, and this result was saved without them. Save it with rows=True."
            )
        return RowReader(self.calibration.rows, self.tensor_names[0])

    @check_arguments(path=PATH)
    def prepared_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the prepared model as ONNX to ``path``, for ONNX Runtime's own quantizer."""
        write_onnx(build_prepared_onnx(self.network, self.plan, tensor_names=self.tensor_names), path)

    @check_arguments(storage=STORAGE, weight_only=BOOLEAN, opset=COUNT)
    def onnx_model(self, *, storage: Storage = "packed", weight_only: bool = False, opset: int = OPSET_INT2) -> onnx.ModelProto:
        """Return the quantized model as ONNX, in memory.

        Args:
            storage: "packed" stores weights in their own widths, which ONNX Runtime unpacks when it loads the file. "plain" stores all as
                INT8, for execution providers that do not fold constants at load.
            weight_only: use ONNX Runtime's MatMulNBits, with float activations whatever the plan's; for large models at batch 1.
            opset: the newest opset that the runtime reads. Below 25 there is no INT2, below 21 no INT4, and a wider type is used.
        """
        model = self._columns_model(storage, weight_only, opset)
        return model if self.inputs is None else split_input(model, self.inputs)

    def _columns_model(self, storage: Storage = "packed", weight_only: bool = False, opset: int = OPSET_INT2) -> onnx.ModelProto:
        """Return the quantized model as ONNX that takes one tensor of all columns."""
        return build_onnx(
            self.network,
            self.plan,
            decision=self.decision,
            tensor_names=self.tensor_names,
            interface=self.interface,
            storage=storage,
            weight_only=weight_only,
            opset=opset,
        )

    def classifier(self, preprocessing: Any | None = None, *, classes: Sequence[Any] | None = None) -> QuantizedClassifier:
        """Return the quantized model as a fitted scikit-learn classifier that runs in ONNX Runtime.

        Args:
            preprocessing: a fitted encoder, or a pipeline whose predictor is ignored. It turns the rows that ``predict`` takes into the
                model's columns. By default these are the columns themselves.
            classes: names of the classes, in the order of the model's scores. By default those of the scikit-learn model that was
                quantized or that ends ``preprocessing``, or else 0, 1, and so on.

        Raises:
            ConfigurationError: the number of classes differs from the model's.
        """
        from cfptq.pipeline.classifier import build_classifier

        return build_classifier(self._columns_model(), preprocessing, self.decision, self._list_classes(preprocessing, classes))

    def _list_classes(self, preprocessing: Any, classes: Sequence[Any] | None) -> Sequence[Any] | None:
        """Return the classes that are given, or those of the scikit-learn model, or None."""
        if classes is not None or self.classes is not None:
            return classes if classes is not None else self.classes
        last = preprocessing.steps[-1][1] if getattr(preprocessing, "steps", None) else None
        found = getattr(last, "classes_", None)
        return None if found is None else [label.item() if hasattr(label, "item") else label for label in found]

    @check_arguments(path=PATH, storage=STORAGE, weight_only=BOOLEAN, opset=COUNT, check=BOOLEAN, packed=optional(BOOLEAN))
    def to_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        preprocessing: Any | None = None,
        people: pd.DataFrame | None = None,
        outputs: Sequence[str] = (),
        storage: Storage = "packed",
        weight_only: bool = False,
        opset: int = OPSET_INT2,
        check: bool = False,
        packed: bool | None = None,
    ) -> None:
        """Write the quantized model as an ONNX file with int8 activations, packed weights and a dynamic batch.

        Args:
            path: file to write, whole or not at all.
            preprocessing: a fitted scikit-learn encoder, or a pipeline whose predictor is ignored, that the file does first. It then has
                an input (N, 1) for each raw column, under the column's name. Numbers are float64, and text holds "" for a missing value.
                The file is compared with the encoder on raw rows. A category that the encoder refuses makes the scores NaN.
            people: raw rows to compare on, which also tell the types of the inputs. By default rows are made from the calibration rows.
            outputs: further outputs after the scores, "label" (the class that is decided) and "probability" (of each class).
            storage: "packed" stores weights in their own widths, which ONNX Runtime unpacks when it loads the file. "plain" stores all as
                INT8, for execution providers that do not fold constants at load.
            weight_only: use ONNX Runtime's MatMulNBits, with float activations whatever the plan's; for large models at batch 1.
            opset: the newest opset that the runtime reads. Below 25 there is no INT2, below 21 no INT4, and a wider type is used. The
                file has opset 21 where that suffices.
            check: run the file without saturation and compare it with the fake-quantized module before it is put in place. A
                ``cfptq.errors.SaturationWarning`` says where ONNX Runtime's default session decides calibration rows otherwise.
            packed: the earlier name of ``storage``. True means "packed" and False "plain". By default ``storage`` decides.

        Raises:
            ActionSetError: a step of the preprocessing cannot be read.
            ModelError: the file disagrees with the plan (``check=True``) or with the preprocessing, a step of it has no form as ONNX
                nodes, or the opset lacks what the plan needs.
            FileError: the file cannot be written.

        Warns:
            DataWarning: the file decides some people otherwise than the preprocessing followed by the model does.
        """
        if packed is not None:
            storage = "packed" if packed else "plain"
        model = self._columns_model(storage, weight_only, opset)
        rows = None if self.calibration is None else self.calibration.rows
        if outputs:
            model = add_decision_outputs(model, outputs, self.decision, self._list_classes(preprocessing, None))
        if preprocessing is not None:
            model = put_preprocessing_before(model, preprocessing, people, rows, self.plan.seed, self.decision)
        elif self.inputs is not None:
            model = split_input(model, self.inputs)
        if people is not None and preprocessing is None:
            raise ModelError("people must be None without preprocessing. They tell the types of raw columns.")
        if not check:
            write_onnx(model, path)
            return
        write_checked_onnx(model, path, self.network, self.plan, rows, decision=self.decision, weight_only=weight_only)

    @check_arguments(folder=PATH, rows=BOOLEAN)
    def save(self, folder: str | os.PathLike[str], *, rows: bool = True) -> None:
        """Write the result into a folder of its own, which ``cfptq.load`` reads without the original model.

        Args:
            folder: new, empty, or an earlier saved result. It is replaced whole, or left as it was if anything fails.
            rows: keep the calibration rows and their recourse. They are people's data; False leaves them out.

        Raises:
            FileError: ``folder`` is a file, the working folder, or holds other files, or it cannot be written. Nothing is written.
        """
        description = {
            "head": self.head.value,
            "threshold": self.threshold,
            "allocation": asdict(self.allocation),
            "sensitivity": asdict(self.sensitivity),
            "method": None if self.method is None else self.method.to_dict(),
            "budget": None if self.budget is None else asdict(self.budget),
            "pinned": dict(self.pinned),
            "remarks": list(self.remarks),
            "tensor_names": list(self.tensor_names),
            "inputs": None if self.inputs is None else [asdict(part) for part in self.inputs],
            "classes": None if self.classes is None else list(self.classes),
            "interface": None if self.interface is None else self.interface.to_dict(),
            "repair": None if self.repair is None else self.repair.to_dict(),
            "fewest_bits": None if self.fewest_bits is None else self.fewest_bits.to_dict(),
            "worst_group": None if self.worst_group is None else self.worst_group.to_dict(),
            "training": None if self.training is None else self.training.to_dict(),
        }
        calibration, recourse = (self.calibration, self.teacher) if rows else (None, None)
        write_result(folder, description, self.network, self.plan, calibration, recourse)

    @staticmethod
    @check_arguments(folder=PATH)
    def load(folder: str | os.PathLike[str]) -> Result:
        """Read what ``save`` wrote.

        Raises:
            FileError: a file is missing, cut off, altered, or not what it should be. Nothing is unpickled.
        """
        return Result(**read_result(folder))

    def with_names_of(self, model: nn.Module) -> Result:
        """Return the result with the tensor names of the ONNX file that ``model`` was read from, or as it is for other models."""
        if not isinstance(model, OnnxModule):
            return self
        return replace(self, tensor_names=(model.input_name, model.output_name), interface=model.source.interface)
