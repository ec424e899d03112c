"""Encoders and decoders of images as differentiable networks that are kept as ONNX."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import torch
from torch import Tensor, nn

from cfptq.errors import ActionSetError, CfptqError, FileError, name_rows
from cfptq.io.arguments import is_finite_number
from cfptq.io.atomic import atomic_write
from cfptq.io.files import read_file
from cfptq.network import OnnxModule, capture, to_onnx_model

#: A network from rows to rows. A module is captured and exported, so that it computes the same before and after it is saved.
NetworkSource: TypeAlias = nn.Module | onnx.ModelProto | str | os.PathLike[str]

#: Largest encoder or decoder that is read.
MAX_NETWORK_BYTES = 2**30
#: Values may leave their bounds by this share of the bounds' width, which covers rounding of 8-bit pixels.
BOUND_TOLERANCE = 1e-4


class ImageCoder:
    """An encoder E from images to codes and a decoder D from codes to images.

    Args:
        encoder: takes rows (N, *row_shape) and gives codes (N, k).
        decoder: takes codes (N, k) and gives rows (N, *row_shape).
        row_shape: shape of one row, such as (1, 28, 28).
        bounds: least and largest value of a pixel. Decoded values are clipped to them.

    Attributes:
        code_size: number of values of a code, k.

    Raises:
        ActionSetError: the networks do not fit each other or the shape.
        ModelError: a network cannot be captured or read.
    """

    def __init__(self, encoder: NetworkSource, decoder: NetworkSource, row_shape: Sequence[int], bounds: tuple[float, float]) -> None:
        self.row_shape, self.bounds = check_shape(row_shape), check_bounds("bounds", bounds)
        middle = torch.full((2, *self.row_shape), sum(self.bounds) / 2)
        self._encoder, codes = _read_network("encoder", encoder, middle)
        if codes.dim() != 2 or codes.shape[1] == 0:
            raise ActionSetError(f"encoder must give codes of shape (N, k), got {tuple(codes.shape)} for two rows. Add nn.Flatten().")
        self.code_size = codes.shape[1]
        self._decoder, rows = _read_network("decoder", decoder, codes)
        if tuple(rows.shape[1:]) != self.row_shape:
            raise ActionSetError(f"decoder must give rows of shape {self.row_shape}, as row_shape says, got {tuple(rows.shape[1:])}.")

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of rows, (N, k)."""
        # ONNX cannot tell the size -1 of a reshape where there are no rows.
        codes: Tensor = self._encoder(x) if len(x) else x.new_zeros(0, self.code_size)
        return codes

    def decode(self, z: Tensor) -> Tensor:
        """Return the rows of codes, clipped to the bounds, (N, ...)."""
        return torch.clamp(self._decoder(z), *self.bounds) if len(z) else z.new_zeros(0, *self.row_shape)

    def move(self, x: Tensor, shift: Tensor) -> Tensor:
        """Return D(E(x) + shift), and x itself where the shift is zero, differentiable with respect to ``shift``.

        A reconstruction differs from its image. Somebody who does nothing keeps the image.
        """
        with torch.no_grad():
            code = self.encode(x)
        decoded = self.decode(code + shift)
        still = (shift.detach() == 0).all(1)
        if not bool(still.any()):
            return decoded
        return torch.where(still.reshape(-1, *[1] * (x.dim() - 1)), x + (decoded - decoded.detach()), decoded)

    def check(self, x: Tensor) -> None:
        """Check that rows have the shape and lie within the bounds.

        Raises:
            ActionSetError: some do not.
        """
        if tuple(x.shape[1:]) != self.row_shape:
            raise ActionSetError(f"rows must have the shape (N, {', '.join(map(str, self.row_shape))}), got {tuple(x.shape)}.")
        low, high = self.bounds
        slack = BOUND_TOLERANCE * (high - low)
        flat = x.flatten(1)
        bad = ((flat.amin(1) < low - slack) | (flat.amax(1) > high + slack)).nonzero()[:, 0].tolist()
        if bad:
            raise ActionSetError(
                f"rows must lie between {low:g} and {high:g}, and rows {name_rows(bad)} do not. Divide 8-bit pixels by 255, or give the "
                "action set other bounds."
            )

    @property
    def contents(self) -> dict[str, bytes]:
        """The ONNX files of encoder and decoder by their names."""
        return {name: _serialize(module) for name, module in (("encoder", self._encoder), ("decoder", self._decoder))}

    @property
    def digest(self) -> str:
        """SHA-256 digest of both networks."""
        return hashlib.sha256(b"".join(self.contents.values())).hexdigest()


def save_networks(path: Path, contents: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Write networks beside the action set at ``path``, and return the file and digest of each by its name."""
    written = {}
    for name, content in contents.items():
        file = path.with_name(f"{path.stem}.{name}.onnx")
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
        written[name] = {"file": file.name, "sha256": hashlib.sha256(content).hexdigest()}
    return written


def load_network(path: Path, name: str, entry: Any) -> onnx.ModelProto:
    """Read a network that ``save_networks`` wrote, and check its digest.

    Args:
        path: the action set's file.
        name: the network's name, for messages.
        entry: what the action set says of it.

    Raises:
        FileError: the entry is none, the file is missing, or it holds other bytes than those that were saved.
    """
    if not isinstance(entry, Mapping) or set(entry) != {"file", "sha256"} or not all(isinstance(text, str) for text in entry.values()):
        raise FileError(f"{path}: {name} must have file and sha256, both text, got {entry!r}.")
    if Path(entry["file"]).name != entry["file"] or entry["file"] in ("", ".", ".."):
        raise FileError(f"{path}: the file of {name} must lie beside the action set, got {entry['file']!r}.")
    content = read_file(path.with_name(entry["file"]), MAX_NETWORK_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise FileError(
            f"{path.with_name(entry['file'])} must have the SHA-256 {entry['sha256']}, which {path.name} records, and has {found}. "
            "It is another network. Save the action set again."
        )
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:
        raise FileError(f"{path.with_name(entry['file'])} is no ONNX file ({type(error).__name__}).") from error


def check_shape(row_shape: Any) -> tuple[int, ...]:
    """Return the shape of a row, checked.

    Raises:
        ActionSetError: it is no sequence of positive whole numbers.
    """
    is_sequence = isinstance(row_shape, Sequence) and not isinstance(row_shape, str)
    if not is_sequence or not row_shape or not all(isinstance(size, int) and size > 0 for size in row_shape):
        raise ActionSetError(f"row_shape must hold positive whole numbers, such as (1, 28, 28), got {row_shape!r}.")
    return tuple(int(size) for size in row_shape)


def check_bounds(name: str, bounds: Any) -> tuple[float, float]:
    """Return a pair (low, high), checked.

    Raises:
        ActionSetError: it is no pair of finite numbers with low < high.
    """
    is_pair = isinstance(bounds, Sequence) and len(bounds) == 2 and all(is_finite_number(bound) for bound in bounds)
    if not is_pair or not bounds[0] < bounds[1]:
        raise ActionSetError(f"{name} must be two finite numbers, the lower one first, got {bounds!r}.")
    return float(bounds[0]), float(bounds[1])


def check_positive(name: str, value: Any, *, zero: bool = False) -> float:
    """Return a finite positive number, or zero where it is allowed.

    Raises:
        ActionSetError: it is none.
    """
    if not is_finite_number(value) or value < 0 or (value == 0 and not zero):
        raise ActionSetError(f"{name} must be a {'number from 0' if zero else 'positive number'}, got {value!r}.")
    return float(value)


def check_favourable(value: Any) -> int | None:
    """Return the favourable class, checked.

    Raises:
        ActionSetError: it is neither None nor a class from 0.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ActionSetError(f"favourable must be a class from 0, or None, got {value!r}.")
    return value


def _read_network(name: str, source: NetworkSource, example: Tensor) -> tuple[OnnxModule, Tensor]:
    """Return a network with its output for ``example``."""
    try:
        if isinstance(source, OnnxModule):
            module = source
        elif isinstance(source, nn.Module):
            module = OnnxModule(to_onnx_model(capture(source, example)))
        elif isinstance(source, onnx.ModelProto | str | os.PathLike):
            module = OnnxModule(source)
        else:
            raise ActionSetError(f"{name} must be a torch.nn.Module or an ONNX file, got a {type(source).__name__}.")
        with torch.no_grad():
            output = module(example)
    except CfptqError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:
        raise ActionSetError(f"{name} must take rows of shape {tuple(example.shape[1:])}, and fails on them ({error}).") from error
    if len(output) != len(example) or not bool(torch.isfinite(output).all()):
        raise ActionSetError(f"{name} must give finite values for each row, got shape {tuple(output.shape)} for {len(example)} rows.")
    return module, output


def _serialize(module: OnnxModule) -> bytes:
    content: bytes = module.source.model.SerializeToString(deterministic=True)
    return content
