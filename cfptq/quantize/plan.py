"""The quantization plan: what every hand-over holds, integer for integer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cfptq.errors import FileError, ModelError
from cfptq.io.atomic import atomic_folder
from cfptq.quantize.formats import ActivationFormat, container_bits, integer_limit, layer_widths

#: Version of the saved form.
SCHEMA = 1

#: The files of a saved plan.
PLAN_FILES = ("plan.json", "plan.safetensors")


@dataclass(frozen=True)
class LayerPlan:
    """One layer's weight: ``integers * scale`` along the output channel, and the bias that goes with it.

    Attributes:
        name: the layer's name in the user's model.
        kind: "linear", "conv1d" or "conv2d".
        bits: width of the integers, one of 2, 3, 4, 7, 8.
        integers: int8, the weight's own shape, within the narrow symmetric range of ``bits``.
        scale: float32, shape (out,): step of each output channel.
        bias: float32, shape (out,), or None.
        input: name of the node whose tensor feeds the layer; its format stands in the plan's ``activations``.
    """

    name: str
    kind: str
    bits: int
    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    input: str

    def __post_init__(self) -> None:
        limit = integer_limit(self.bits)
        if self.integers.dtype != torch.int8 or self.integers.dim() < 2:
            raise ModelError(f"layer {self.name!r}: integers must be int8 with at least two axes, not {self.integers.dtype}")
        if self.integers.numel() and int(self.integers.to(torch.int16).abs().max()) > limit:
            raise ModelError(f"layer {self.name!r}: integers leave ±{limit}, the range of {self.bits} bits")
        channels = self.integers.shape[:1]
        if self.scale.shape != channels or self.scale.dtype != torch.float32 or not bool((self.scale > 0).all()):
            raise ModelError(f"layer {self.name!r}: scales must be {channels[0]} positive float32 numbers")
        if self.bias is not None and (self.bias.shape != channels or not bool(torch.isfinite(self.bias).all())):
            raise ModelError(f"layer {self.name!r}: the bias must be {channels[0]} finite numbers")

    @property
    def parameters(self) -> int:
        """n_l, the number of weights."""
        return self.integers.numel()

    def weight(self) -> torch.Tensor:
        """The weight on its grid, float32: integers times the channel's scale."""
        return self.integers.to(torch.float32) * self.scale.reshape(-1, *[1] * (self.integers.dim() - 1))

    def bias_integers(self, form: ActivationFormat) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """The bias as integer kernels add it: int32 and its float32 step, input scale times weight scale, for each step of the input.

        Empty without a bias, and where no integer kernel runs on ``form``.
        """
        if self.bias is None or not form.feeds_integers:
            return ()
        left, reach, parts = self.bias.double(), torch.iinfo(torch.int32), []
        for scale in (form.scale, form.fine_scale):
            if scale is not None:
                step = torch.tensor(scale, dtype=torch.float32) * self.scale
                integers = torch.round(left / step.double()).clamp(reach.min, reach.max).to(torch.int32)
                left = left - integers.double() * step.double()
                parts.append((integers, step))
        return tuple(parts)

    def deployed_bias(self, form: ActivationFormat) -> torch.Tensor | None:
        """The bias that an integer kernel adds: on the int32 grid where it is one, as it is otherwise."""
        parts = self.bias_integers(form)
        if not parts:
            return self.bias
        return torch.stack([integers.double() * step.double() for integers, step in parts]).sum(dim=0).to(torch.float32)


@dataclass(frozen=True)
class QuantizationPlan:
    """Everything that turns the captured network into its quantized form, whatever toolchain does it.

    Attributes:
        layers: the quantized layers, in execution order.
        activations: one format per tensor that feeds a quantized layer.
        network: digest of the captured full-precision network that the plan is for.
        method: name of the method that made it.
        seed: seed of the calibration draw.
        portable: weights behind integer inputs stay within ±63, so that int8 kernels are right on processors without VNNI too.
        input_choice: why the model's input has the format that it has.
    """

    layers: tuple[LayerPlan, ...]
    activations: tuple[ActivationFormat, ...]
    network: str
    method: str
    seed: int
    portable: bool = False
    input_choice: str = ""

    def __post_init__(self) -> None:
        formats = {form.tensor for form in self.activations}
        names = [layer.name for layer in self.layers]
        if not names:
            raise ModelError("a plan needs at least one quantized layer")
        if len(set(names)) != len(names) or len(formats) != len(self.activations):
            raise ModelError("a plan names a layer or an activation twice")
        missing = [layer.name for layer in self.layers if layer.input not in formats]
        if missing:
            raise ModelError(f"the plan has no activation format for the input of {', '.join(missing)}")
        beyond = [layer.name for layer in self.layers if self.portable and self._can_saturate(layer)]
        if beyond:
            raise ModelError(
                f"a portable plan keeps weights behind integer inputs within ±{integer_limit(7)}, and {beyond[0]!r} leaves them"
            )

    def _can_saturate(self, layer: LayerPlan) -> bool:
        """Return whether sums of two products of the layer may leave 16 bits."""
        return self.input_format(layer).feeds_integers and int(layer.integers.to(torch.int16).abs().max()) > integer_limit(7)

    @cached_property
    def _formats(self) -> Mapping[str, ActivationFormat]:
        return {form.tensor: form for form in self.activations}

    def input_format(self, layer: LayerPlan) -> ActivationFormat:
        """The format of the tensor that feeds ``layer``."""
        return self._formats[layer.input]

    @property
    def candidate_widths(self) -> dict[str, tuple[int, ...]]:
        """Widths that each layer could have with this plan's activation formats, by name."""
        return {layer.name: layer_widths(self.input_format(layer).feeds_integers, self.portable) for layer in self.layers}

    @property
    def bits(self) -> dict[str, int]:
        """Width of each layer, by name."""
        return {layer.name: layer.bits for layer in self.layers}

    @property
    def average_bits(self) -> float:
        """Sum of n_l * b_l over sum of n_l (eq. 24)."""
        return sum(layer.parameters * layer.bits for layer in self.layers) / sum(layer.parameters for layer in self.layers)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights, scales and biases as a file holds them (3-bit integers in 4-bit containers)."""
        weights = sum((layer.parameters * container_bits(layer.bits) + 7) // 8 for layer in self.layers)
        return weights + sum(4 * layer.scale.numel() + (0 if layer.bias is None else 4 * layer.bias.numel()) for layer in self.layers)

    @cached_property
    def digest(self) -> str:
        """sha256 of the saved form: the plan's identity in files and reports."""
        return _digest(*self._saved())

    def _saved(self) -> tuple[dict[str, Any], bytes]:
        tensors: dict[str, torch.Tensor] = {}
        for layer in self.layers:
            tensors[f"{layer.name}.integers"] = layer.integers.contiguous()
            tensors[f"{layer.name}.scale"] = layer.scale.contiguous()
            if layer.bias is not None:
                tensors[f"{layer.name}.bias"] = layer.bias.contiguous()
        head = {
            "schema": SCHEMA,
            "method": self.method,
            "seed": self.seed,
            "portable": self.portable,
            "input_choice": self.input_choice,
            "network": self.network,
            "layers": [{"name": it.name, "kind": it.kind, "bits": it.bits, "input": it.input} for it in self.layers],
            "activations": [asdict(it) for it in self.activations],
        }
        return head, save_tensors(tensors)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``plan.json`` and ``plan.safetensors`` into ``folder``, whole or not at all.

        Raises:
            FileError: ``folder`` is neither new, nor empty, nor an earlier saved plan.
        """
        with atomic_folder(folder, PLAN_FILES, ("layers", "activations")) as aside:
            self.write_into(aside)

    def write_into(self, folder: Path) -> None:
        """Write the two files into an existing ``folder``; the caller sees to it that a crash leaves nothing behind."""
        head, tensors = self._saved()
        (folder / "plan.json").write_bytes(_text({**head, "digest": _digest(head, tensors)}).encode())
        (folder / "plan.safetensors").write_bytes(tensors)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> QuantizationPlan:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: a file is missing, cut off, altered, or does not hold a plan.
        """
        place = Path(folder)
        try:
            head: dict[str, Any] = json.loads((place / "plan.json").read_bytes())
            content = (place / "plan.safetensors").read_bytes()
            if head["schema"] != SCHEMA:
                raise FileError(f"{place}/plan.json has schema {head['schema']}; this version reads schema {SCHEMA}: upgrade cfptq")
            # The bytes as they lie there, not the plan written again: another release of safetensors may lay it out otherwise.
            if head.pop("digest", None) not in (None, _digest(head, content)):
                raise FileError(
                    f"{place}/plan.json or {place}/plan.safetensors was changed after it was saved (its digest differs); save it again"
                )
            tensors = load_tensors(content)
            layers = tuple(
                LayerPlan(
                    name=str(it["name"]),
                    kind=str(it["kind"]),
                    bits=int(it["bits"]),
                    integers=tensors[f"{it['name']}.integers"],
                    scale=tensors[f"{it['name']}.scale"],
                    bias=tensors.get(f"{it['name']}.bias"),
                    input=str(it["input"]),
                )
                for it in head["layers"]
            )
            activations = tuple(ActivationFormat(**it) for it in head["activations"])
            return QuantizationPlan(
                layers=layers,
                activations=activations,
                network=str(head["network"]),
                method=str(head["method"]),
                seed=int(head["seed"]),
                portable=bool(head["portable"]),
                input_choice=str(head["input_choice"]),
            )
        except OSError as error:
            raise FileError(f"cannot read the plan in {place}: {error.strerror}; give a folder that was saved whole") from error
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, ModelError) as error:
            raise FileError(f"{place} does not hold a whole quantization plan ({error}); save it again") from error


def _text(head: Mapping[str, Any]) -> str:
    return json.dumps(head, indent=2, sort_keys=True) + "\n"


def _digest(head: Mapping[str, Any], tensors: bytes) -> str:
    return hashlib.sha256(_text(head).encode() + b"\0" + tensors).hexdigest()
