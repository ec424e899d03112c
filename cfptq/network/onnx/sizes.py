"""Limits on the sizes of ONNX models, and the files beside a model that hold its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from cfptq.errors import FileError

MAX_MODEL_BYTES = 2**31  # Protocol buffers hold no more.
MAX_EXTERNAL_BYTES = 2**31  # Of one file, and of all tensors of a model together.
MAX_ELEMENTS = 2**28  # Of one tensor. As float32 they take 1 GiB.


def iterate_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers and constants of a model's graph, of the graphs within it, and of its functions."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*((attribute.sparse_tensor,) if attribute.HasField("sparse_tensor") else ()), *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs]


def check_elements(model: onnx.ModelProto, where: str) -> None:
    """Check that no tensor of a model claims a shape of more than ``MAX_ELEMENTS``.

    Args:
        model: the model.
        where: name of the model in messages.

    Raises:
        FileError: a tensor claims more, or a dimension is negative.
    """
    for tensor in iterate_tensors(model):
        shape = list(tensor.dims)
        if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise FileError(
                f"Each tensor in {where} must have at most {MAX_ELEMENTS} elements, got the shape {shape} of {tensor.name!r}. "
                "Export a smaller model."
            )


def check_computed_sizes(model: onnx.ModelProto, where: str) -> None:
    """Check that no tensor that a model computes has more than ``MAX_ELEMENTS`` for one row, as far as its shape can be inferred.

    A few bytes can ask for more memory than a machine has, such as a Tile by 2^40.

    Args:
        model: the model.
        where: name of the model in messages.

    Raises:
        FileError: a tensor has more.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # What cannot be inferred is left to ONNX Runtime, which checks shapes of its own.
        return
    for value in (*inferred.value_info, *inferred.output):
        sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim if dimension.HasField("dim_value")]
        if math.prod(max(size, 1) for size in sizes) > MAX_ELEMENTS:
            raise FileError(
                f"Each tensor that {where} computes must have at most {MAX_ELEMENTS} elements, got the shape {sizes} of {value.name!r}. "
                "Export a smaller model."
            )


def check_external_sizes(model: onnx.ModelProto, path: Path) -> None:
    """Check the sizes of the files beside a model before they are read.

    A file elsewhere, or none, is left to the reader, which refuses it.

    Args:
        model: the model, without its external data.
        path: its file.

    Raises:
        FileError: a file is no regular file or too large, or the tensors together claim too much.
    """
    sizes: dict[Path, int] = {}
    total = 0
    for tensor in iterate_tensors(model):
        if not uses_external_data(tensor):
            continue
        claim = ExternalDataInfo(tensor)
        file = path.parent / claim.location
        if file not in sizes:
            sizes[file] = check_file_size(file, MAX_EXTERNAL_BYTES) if _is_within(file, path.parent) else 0
        total += max(0, sizes[file] - (claim.offset or 0)) if claim.length is None else max(0, claim.length)
        if total > MAX_EXTERNAL_BYTES:
            raise FileError(
                f"Tensors of {path} must take at most {MAX_EXTERNAL_BYTES} bytes of the files beside it together, got {total} and more. "
                "Export a smaller model."
            )


def list_external_files(path: Path) -> dict[str, Path]:
    """Return the files beside an ONNX file that hold its weights, by their names in it."""
    model = onnx.load(path, load_external_data=False)
    names = {ExternalDataInfo(tensor).location for tensor in iterate_tensors(model) if uses_external_data(tensor)}
    return {name: path.parent / name for name in sorted(names)}


def check_file_size(path: Path, max_bytes: int) -> int:
    """Return the size of a regular file of at most ``max_bytes``.

    Raises:
        FileError: it is no regular file, or it is larger.
    """
    if not path.is_file():
        raise FileError(f"{path} must be a regular file, and it is a folder, a device or a pipe.")
    size = path.stat().st_size
    if size > max_bytes:
        raise FileError(f"{path} must have at most {max_bytes} bytes, got {size}.")
    return size


def _is_within(file: Path, folder: Path) -> bool:
    """Return whether a file exists and lies in a folder or below it, with links followed."""
    return file.exists() and file.resolve().is_relative_to(folder.resolve())
