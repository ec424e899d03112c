"""What calibration gives back: the plan, everything that led to it, and every way to hand it over."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import fx, nn

from cfptq.allocation import BitAllocation, LayerScores, MeasuredScores
from cfptq.backends import onnxruntime as ort_backend
from cfptq.calibration import CalibrationSet
from cfptq.errors import CfptqError, FileError, ModelError
from cfptq.files import written_aside
from cfptq.network import Head, Network, Predictor, as_predictor
from cfptq.quantize import QuantizationPlan, prepared, twin
from cfptq.recourse import RecourseBatch

#: Version of the saved form.
SCHEMA = 1

#: The twin and the file agree when this share of rows is within TOLERANCE in the logits (one-step rounding ties may differ).
AGREEMENT = 0.999
TOLERANCE = 1e-3


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
    """

    network: Network
    plan: QuantizationPlan
    allocation: BitAllocation
    sensitivity: LayerScores
    head: Head
    threshold: float | None
    calibration: CalibrationSet | None
    teacher: RecourseBatch | None

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

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {bits}" for name, bits in self.bits.items())
        left = "".join(f"; {name} left in float: {why}" for name, why in self.skipped.items())
        formats = ["float" if bits == 32 else f"{bits}-bit" for bits in (self.input_bits, self.activation_bits)]
        return (
            f"{self.plan.method}: {self.plan.average_bits:.2f} bits on average ({layers}), {formats[0]} input, "
            f"{formats[1]} hidden activations{left}"
        )

    def module(self) -> fx.GraphModule:
        """The fake-quantized twin: computes with the plan's integers, differentiable in its input."""
        return twin(self.network, self.plan)

    def prepared_model(self) -> nn.Module:
        """The float32 model whose weights already lie on the plan's grid, BatchNorm folded and biases corrected."""
        return prepared(self.network, self.plan).module()

    def prepared_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the prepared model as ONNX, for ONNX Runtime's own quantizer."""
        _write(ort_backend.prepared_onnx_model(self.network, self.plan), path)

    def onnx_model(self, *, packed: bool = True) -> onnx.ModelProto:
        """The quantized model as ONNX, in memory; see :meth:`to_onnx`."""
        decision = {"cfptq.head": self.head.value, "cfptq.threshold": "" if self.threshold is None else repr(self.threshold)}
        return ort_backend.to_onnx_model(self.network, self.plan, decision, packed=packed)

    def to_onnx(self, path: str | os.PathLike[str], *, packed: bool = True, check: bool = False) -> None:
        """Write the quantized model: int8 activations, weights stored in 2, 4 or 8 bits, dynamic batch, opset 21 or above.

        Args:
            path: file to write, whole or not at all.
            packed: store narrow weights in INT2 and INT4 (ONNX Runtime 1.23 or later); False stores all as INT8.
            check: run the file and compare it with the twin before it is put in place.

        Raises:
            ModelError: the file disagrees with the twin (``check=True``).
            FileError: the place cannot be written.
        """
        model = self.onnx_model(packed=packed)
        with written_aside(path) as aside:
            aside.write_bytes(model.SerializeToString(deterministic=True))
            if check:
                self._check(aside)

    def _check(self, path: Path) -> None:
        rows = self.calibration.rows if self.calibration is not None else torch.randn(1024, *self.network.input_shape)
        file = self.predictor(path)
        difference = (file.logits(rows) - file.surrogate(rows).detach()).abs().amax(dim=1)
        within = float((difference <= TOLERANCE).float().mean())
        if within < AGREEMENT:
            raise ModelError(
                f"the written model agrees with the plan on {within:.2%} of {len(rows)} rows only (largest difference "
                f"{float(difference.max()):.3g}); on a processor without VNNI pass portable=True to calibrate"
            )

    def predictor(self, path: str | os.PathLike[str]) -> Predictor:
        """The file at ``path``, run in ONNX Runtime, with the twin's gradients."""
        example = torch.zeros(2, *self.network.input_shape)
        return as_predictor(path, example=example, head=self.head, threshold=self.threshold, twin=self.module(), name=self.plan.method)

    def save(self, folder: str | os.PathLike[str], *, rows: bool = True) -> None:
        """Write everything into a new or replaced ``folder``; :func:`cfptq.load` reads it without the original model.

        Args:
            folder: replaced whole, or left as it was if anything fails.
            rows: keep the calibration rows and the teacher's recourse. They are people's data: False leaves them out.
        """
        head = {
            "schema": SCHEMA,
            "head": self.head.value,
            "threshold": self.threshold,
            "allocation": asdict(self.allocation),
            "sensitivity": asdict(self.sensitivity),
        }
        with written_aside(folder) as aside:
            aside.mkdir()
            (aside / "result.json").write_text(json.dumps(head, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
            self.plan.write_into(aside)
            self.network.save(aside / "network")
            if rows and self.calibration is not None:
                self.calibration.save(aside / "calibration.safetensors")
            if rows and self.teacher is not None:
                self.teacher.save(aside / "teacher.safetensors")


def load(folder: str | os.PathLike[str]) -> Result:
    """Read what :meth:`Result.save` wrote: a Result that exports without the original model.

    Raises:
        FileError: a file is missing, cut off, or not what it should be. Nothing is unpickled.
    """
    place = Path(folder)
    try:
        head = json.loads((place / "result.json").read_bytes())
        if head["schema"] != SCHEMA:
            raise FileError(f"{place}/result.json has schema {head['schema']}; this version reads schema {SCHEMA}: upgrade cfptq")
        calibration, teacher = place / "calibration.safetensors", place / "teacher.safetensors"
        result = Result(
            network=Network.load(place / "network"),
            plan=QuantizationPlan.load(place),
            allocation=BitAllocation(**head["allocation"]),
            sensitivity=_scores(head["sensitivity"]),
            head=Head(head["head"]),
            threshold=head["threshold"],
            calibration=CalibrationSet.load(calibration) if calibration.exists() else None,
            teacher=RecourseBatch.load(teacher) if teacher.exists() else None,
        )
    except OSError as error:
        raise FileError(f"cannot read a saved result in {place}: {error.strerror}; give a folder that Result.save wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{place}/result.json is not a whole saved result ({error}); save it again") from error
    except FileError:
        raise
    except CfptqError as error:
        raise FileError(f"{place} is not a whole saved result ({error}); save it again") from error
    if result.plan.network != result.network.digest():
        raise FileError(f"{place} holds a plan and a network that do not belong together; save the result again")
    return result


def _scores(content: dict[str, Any]) -> LayerScores:
    return MeasuredScores(**content) if "damage" in content else LayerScores(**content)


def _write(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    with written_aside(path) as aside:
        aside.write_bytes(model.SerializeToString(deterministic=True))
