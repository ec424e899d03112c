"""Quantization plan, whose integers every hand-over holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cfptq.errors import FileError, ModelError
from cfptq.io.atomic import atomic_folder
from cfptq.io.files import as_path, read_file, read_json
from cfptq.quantize.formats import (
    ALL_WIDTHS,
    ActivationFormat,
    Bits,
    Granularity,
    align_limits,
    align_with_channels,
    count_bits,
    integer_limit,
    layer_widths,
    read_bits,
    spread_bits,
    widest_bits,
)
from cfptq.quantize.split_inputs import COARSE_STEP, MIN_SPLIT_HELD_BITS, find_integer_factors, limit_columns
from cfptq.quantize.storage import StoredLayer, count_weight_bytes

#: Version of the file format of a plan with one width a layer, and of one with a width for each output channel. Both are read.
SCHEMA, CHANNEL_SCHEMA = 1, 2

#: Integer that a bias takes in a step that is widened for it. A variant of the step, or a small correction of the bias, still fits int32.
MAX_WIDENED_BIAS = 2**30

MAX_TENSOR_BYTES = 2**36  # A larger plan.safetensors is refused.

#: The files of a saved plan.
PLAN_FILES = ("plan.json", "plan.safetensors")


@dataclass(frozen=True)
class LayerPlan:
    """Quantized weight of one layer, ``integers * scale`` along the output channel, and its bias.

    Attributes:
        name: the layer's name in the user's model.
        kind: "linear", "conv1d" or "conv2d".
        bits: width of the integers, one of 2, 3, 4, 7 and 8, or a width from 2 to 8 for each output channel, 0 for a dropped one.
        integers: int8, of the weight's shape, within the narrow symmetric range of ``bits``.
        scale: step of each output channel, float32, (out,).
        bias: float32, (out,), or None.
        input: name of the node whose tensor feeds the layer. Its format is among the plan's ``activations``.
        is_sortable: a file may hold the output channels in another order, because one other planned layer alone takes them.
        kept_inputs: False for each input channel that the layer before drops. Its weights are 0 and take no bits. Empty where none is.
        fine_inputs: True for each input column with one bit more than its channel, and False for each with one bit less, whose integers
            are multiples of 4. Empty where no column differs; see ``cfptq.quantize.split_inputs``.

    Raises:
        ModelError: integers leave their range, or a shape, dtype or value is not as above.
    """

    name: str
    kind: str
    bits: Bits
    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    input: str
    is_sortable: bool = False
    kept_inputs: tuple[bool, ...] = ()
    fine_inputs: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.bits, int) and self.bits not in ALL_WIDTHS:
            raise ModelError(
                f"Layer {self.name!r} must have {', '.join(map(str, ALL_WIDTHS))} bits, or a width a channel, got {self.bits}."
            )
        if self.integers.dtype != torch.int8 or self.integers.dim() < 2:
            raise ModelError(
                f"The integers of layer {self.name!r} must be int8 with at least two axes, got {self.integers.dtype} with "
                f"{self.integers.dim()}."
            )
        channels = self.integers.shape[:1]
        if not isinstance(self.bits, int) and len(self.bits) != channels[0]:
            raise ModelError(f"Layer {self.name!r} must have one width for each of {channels[0]} output channels, got {len(self.bits)}.")
        for name, inputs in (("kept_inputs", self.kept_inputs), ("fine_inputs", self.fine_inputs)):
            if inputs and len(inputs) != self.integers.shape[1]:
                raise ModelError(
                    f"{name} of layer {self.name!r} must have one entry for each of {self.integers.shape[1]} input channels, got "
                    f"{len(inputs)}."
                )
        if self.fine_inputs and bool((self.integers % find_integer_factors(self.fine_inputs)).any()):
            raise ModelError(f"The integers of layer {self.name!r} must be multiples of {COARSE_STEP} in its coarse columns.")
        if self.kept_inputs and bool(self.integers[:, ~torch.tensor(self.kept_inputs)].any()):
            raise ModelError(f"The integers of layer {self.name!r} must be 0 in the columns of dropped channels.")
        beyond = self.integers.to(torch.int16).abs() > self.limits
        if bool(beyond.any()):
            width = spread_bits(self.bits, channels[0])[int(beyond.flatten(1).any(dim=1).nonzero()[0])]
            raise ModelError(f"The integers of layer {self.name!r} must stay within ±{integer_limit(width)}, the range of {width} bits.")
        if self.scale.shape != channels or self.scale.dtype != torch.float32 or not bool((self.scale > 0).all()):
            raise ModelError(f"The scale of layer {self.name!r} must hold {channels[0]} positive float32 numbers.")
        if self.bias is not None and (self.bias.shape != channels or not bool(torch.isfinite(self.bias).all())):
            raise ModelError(f"The bias of layer {self.name!r} must hold {channels[0]} finite numbers.")

    @property
    def limits(self) -> int | torch.Tensor:
        """The largest magnitude of the integers, in a shape that broadcasts over them."""
        if not self.fine_inputs:
            return align_limits(self.bits, self.integers)
        return limit_columns(self.channel_bits, self.fine_inputs) * find_integer_factors(self.fine_inputs)

    @property
    def parameters(self) -> int:
        """n_l, the number of weights."""
        return self.integers.numel()

    @property
    def channel_bits(self) -> tuple[int, ...]:
        """Width of each output channel."""
        return spread_bits(self.bits, self.integers.shape[0])

    @property
    def held_bits(self) -> int:
        """Width whose range holds all integers. That of a split layer is one bit wider than its channels."""
        widest = widest_bits(self.bits)
        return max(widest + 1, MIN_SPLIT_HELD_BITS) if self.fine_inputs else max(widest, 2)

    @property
    def total_bits(self) -> int:
        """Bits of all weights."""
        return count_bits(self.bits, self.parameters, self.kept_inputs, self.fine_inputs)

    @property
    def stored(self) -> StoredLayer:
        """Widths and shape, on which the bytes of the integers in a file depend."""
        return StoredLayer(self.bits, self.parameters, self.is_sortable, self.kept_inputs, self.fine_inputs)

    @property
    def stored_channels(self) -> int:
        """Number of output channels in a packed file, which lacks dropped ones."""
        return sum(width > 0 for width in self.channel_bits) if self.is_sortable else len(self.channel_bits)

    def weight(self) -> torch.Tensor:
        """Return the weight on its grid, float32."""
        return self.integers.to(torch.float32) * align_with_channels(self.scale, self.integers)

    def bias_integers(self, form: ActivationFormat) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return the bias as integer kernels add it.

        Args:
            form: format of the layer's input.

        Returns:
            One pair for each step of the input, of int32 integers and their float32 step, input scale times weight scale. Empty without a
            bias, and where no integer kernel runs the layer.
        """
        if self.bias is None or not form.feeds_integers:
            return ()
        left, int32, parts = self.bias.double(), torch.iinfo(torch.int32), []
        for scale in (form.scale, form.fine_scale):
            if scale is not None:
                step = torch.tensor(scale, dtype=torch.float32) * self.scale
                integers = torch.round(left / step.double()).clamp(int32.min, int32.max).to(torch.int32)
                left = left - integers.double() * step.double()
                parts.append((integers, step))
        return tuple(parts)

    def deployed_bias(self, form: ActivationFormat) -> torch.Tensor | None:
        """Return the bias that is deployed, on the int32 grid where an integer kernel adds it.

        Args:
            form: format of the layer's input.
        """
        parts = self.bias_integers(form)
        if not parts:
            return self.bias
        return torch.stack([integers.double() * step.double() for integers, step in parts]).sum(dim=0).to(torch.float32)


def widen_steps_for_bias(layer: LayerPlan, form: ActivationFormat) -> LayerPlan:
    """Widen the steps of the channels whose bias int32 cannot hold, as ONNX Runtime's quantizer does.

    Such a channel's weights are negligible beside its bias, so their coarser rounding changes nothing that matters.

    Args:
        layer: the layer.
        form: format of the layer's input.

    Returns:
        The layer itself where every bias fits.
    """
    if layer.bias is None or form.is_float:
        return layer
    step = layer.scale.double() * form.scale
    limits = torch.iinfo(torch.int32).max * step, torch.finfo(torch.float32).tiny
    is_too_fine = (layer.bias.abs().double() > limits[0]) | (step < limits[1])
    if not bool(is_too_fine.any()):
        return layer
    wide = torch.maximum(layer.bias.abs().double() / MAX_WIDENED_BIAS, torch.tensor(2 * limits[1], dtype=torch.float64)) / form.scale
    scale = torch.where(is_too_fine, wide, layer.scale.double()).to(torch.float32)
    ratio = align_with_channels(layer.scale.double() / scale.double(), layer.integers)
    return replace(layer, integers=torch.round(layer.integers * ratio).to(torch.int8), scale=scale)


@dataclass(frozen=True)
class QuantizationPlan:
    """Everything that turns a captured network into its quantized form, for every toolchain.

    Attributes:
        layers: the quantized layers, in execution order.
        activations: one format for each tensor that feeds a quantized layer.
        network: digest of the captured full-precision network that the plan is for.
        method: name of the method that made it.
        seed: seed of the calibration draw.
        portable: weights behind integer inputs stay within ±63, so that int8 kernels are right on processors without VNNI too.
        input_choice: reason for the format of the model's input.
        keep: parts of the network's structure that the integers keep, "zeros" and "signs"; see ``cfptq.quantize.structure``.

    Raises:
        ModelError: no layer is quantized, a name occurs twice, a format is missing, or a portable plan has weights beyond ±63.
    """

    layers: tuple[LayerPlan, ...]
    activations: tuple[ActivationFormat, ...]
    network: str
    method: str
    seed: int
    portable: bool = False
    input_choice: str = ""
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        formats = {form.tensor for form in self.activations}
        names = [layer.name for layer in self.layers]
        if not names:
            raise ModelError("A plan must have at least one quantized layer, got none.")
        if len(set(names)) != len(names) or len(formats) != len(self.activations):
            raise ModelError("The names of a plan's layers and activations must be distinct.")
        missing = [layer.name for layer in self.layers if layer.input not in formats]
        if missing:
            raise ModelError(f"The plan has no activation format for the input of {', '.join(missing)}.")
        beyond = [layer.name for layer in self.layers if self.portable and self._can_saturate(layer)]
        if beyond:
            raise ModelError(
                f"Integers behind integer inputs must stay within ±{integer_limit(7)} in a portable plan. Those of layer {beyond[0]!r} do "
                "not. Give the layer at most 7 bits, or pass portable=False."
            )

    def _can_saturate(self, layer: LayerPlan) -> bool:
        """Return True if the sum of two products of the layer may leave 16 bits."""
        return self.input_format(layer).feeds_integers and int(layer.integers.to(torch.int16).abs().max()) > integer_limit(7)

    @cached_property
    def _formats(self) -> Mapping[str, ActivationFormat]:
        return {form.tensor: form for form in self.activations}

    def input_format(self, layer: LayerPlan) -> ActivationFormat:
        """Return the format of the tensor that feeds a layer of the plan."""
        return self._formats[layer.input]

    @property
    def candidate_widths(self) -> dict[str, tuple[int, ...]]:
        """Candidate widths of each layer, or of its channels, under this plan's activation formats, by name."""
        return {
            layer.name: layer_widths(self.input_format(layer).feeds_integers, self.portable, self.granularity, layer.is_sortable)
            for layer in self.layers
        }

    @property
    def granularity(self) -> Granularity:
        """Owner of a width, "layer" or "channel"."""
        return "layer" if all(isinstance(layer.bits, int) for layer in self.layers) else "channel"

    @property
    def bits(self) -> dict[str, Bits]:
        """Width of each layer, or of each of its output channels, by name."""
        return {layer.name: layer.bits for layer in self.layers}

    @property
    def average_bits(self) -> float:
        """Average bits per weight, Σ n_l b_l / Σ n_l (eq. 24). A channel counts with its own width."""
        return sum(layer.total_bits for layer in self.layers) / sum(layer.parameters for layer in self.layers)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights, scales and biases in a file, as ``cfptq.quantize.storage`` stores the weights."""
        weights = count_weight_bytes([layer.stored for layer in self.layers])
        return weights + sum(4 * layer.stored_channels * (1 if layer.bias is None else 2) for layer in self.layers)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the saved form, which identifies the plan in files and reports."""
        return _digest(*self._serialize())

    def _serialize(self) -> tuple[dict[str, Any], bytes]:
        """Return the content of ``plan.json`` and the bytes of ``plan.safetensors``."""
        tensors: dict[str, torch.Tensor] = {}
        for layer in self.layers:
            tensors[f"{layer.name}.integers"] = layer.integers.contiguous()
            tensors[f"{layer.name}.scale"] = layer.scale.contiguous()
            if layer.bias is not None:
                tensors[f"{layer.name}.bias"] = layer.bias.contiguous()
        has_channels = self.granularity == "channel"
        head = {
            "schema": CHANNEL_SCHEMA if has_channels else SCHEMA,
            "method": self.method,
            "seed": self.seed,
            "portable": self.portable,
            "input_choice": self.input_choice,
            "keep": list(self.keep),
            "network": self.network,
            "layers": [_describe_layer(layer, has_channels) for layer in self.layers],
            "activations": [asdict(it) for it in self.activations],
        }
        return head, save_tensors(tensors)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``plan.json`` and ``plan.safetensors`` into a folder. An error leaves the folder as it was.

        Args:
            folder: a new or empty folder, or one that holds an earlier plan.

        Raises:
            FileError: ``folder`` is neither new, nor empty, nor an earlier saved plan.
        """
        with atomic_folder(folder, PLAN_FILES, ("layers", "activations")) as aside:
            self.write_into(aside)

    def write_into(self, folder: Path) -> None:
        """Write the two files into an existing folder. The caller protects it against a crash.

        Args:
            folder: the folder to write into.
        """
        head, tensors = self._serialize()
        (folder / "plan.json").write_bytes(_to_json({**head, "digest": _digest(head, tensors)}).encode())
        (folder / "plan.safetensors").write_bytes(tensors)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> QuantizationPlan:
        """Read a plan that ``save`` wrote.

        Args:
            folder: the folder to read.

        Raises:
            FileError: a file is missing, incomplete, changed, or does not hold a plan.
        """
        place = as_path(folder, "folder")
        try:
            head = read_json(place / "plan.json")
            content = read_file(place / "plan.safetensors", MAX_TENSOR_BYTES)
            if head.get("schema") not in (SCHEMA, CHANNEL_SCHEMA):
                raise FileError(
                    f"{place}/plan.json must have schema {SCHEMA} or {CHANNEL_SCHEMA}, got {head.get('schema')!r}. Save the plan again."
                )
            # The digest is that of the bytes in the file. Another release of safetensors may lay out the same plan in another way.
            if head.pop("digest", None) != _digest(head, content):
                raise FileError(
                    f"{place}/plan.json or {place}/plan.safetensors was changed after it was saved, as its digest differs. Save the plan "
                    "again."
                )
            tensors = load_tensors(content)
            layers = tuple(
                LayerPlan(
                    name=str(it["name"]),
                    kind=str(it["kind"]),
                    bits=read_bits(it["bits"]),
                    integers=tensors[f"{it['name']}.integers"],
                    scale=tensors[f"{it['name']}.scale"],
                    bias=tensors.get(f"{it['name']}.bias"),
                    input=str(it["input"]),
                    is_sortable=bool(it.get("is_sortable", False)),
                    kept_inputs=tuple(map(bool, it.get("kept_inputs", ()))),
                    fine_inputs=tuple(map(bool, it.get("fine_inputs", ()))),
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
                portable=bool(head.get("portable", False)),
                input_choice=str(head.get("input_choice", "")),
                keep=tuple(map(str, head.get("keep", ()))),
            )
        except OSError as error:
            raise FileError(
                f"Cannot read the plan in {place} ({error.strerror}). Give a folder that QuantizationPlan.save wrote."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, SafetensorError, ModelError) as error:
            raise FileError(f"{place} does not hold a complete quantization plan ({error}). Save the plan again.") from error


def _describe_layer(layer: LayerPlan, has_channels: bool) -> dict[str, Any]:
    """Return one layer's entry in ``plan.json``."""
    entry: dict[str, Any] = {"name": layer.name, "kind": layer.kind, "input": layer.input}
    if not has_channels:
        return {**entry, "bits": layer.bits}
    entry = {**entry, "bits": list(layer.channel_bits), "is_sortable": layer.is_sortable}
    for name, inputs in (("kept_inputs", layer.kept_inputs), ("fine_inputs", layer.fine_inputs)):
        if inputs:
            entry[name] = list(inputs)
    return entry


def _to_json(head: Mapping[str, Any]) -> str:
    return json.dumps(head, indent=2, sort_keys=True) + "\n"


def _digest(head: Mapping[str, Any], tensors: bytes) -> str:
    return hashlib.sha256(_to_json(head).encode() + b"\0" + tensors).hexdigest()
