"""Operators of ``ai.onnx.ml`` by which tables are prepared, which take ``(node, *inputs)``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cfptq.network.onnx.values import Node, Operator, as_tensor, conversion_error


def _array_feature_extractor(node: Node, x: Tensor, indices: Any) -> Tensor:
    return x.index_select(x.dim() - 1, as_tensor(indices, x).long().flatten())


def _binarizer(node: Node, x: Tensor) -> Tensor:
    is_above: Tensor = x > node.get("threshold", 0.0)
    return is_above.to(torch.float32)


def _feature_vectorizer(node: Node, *parts: Tensor) -> Tensor:
    sizes = node.get("inputdimensions") or [part.shape[-1] for part in parts]
    flat = [part.flatten(1).to(torch.float32) for part in parts]
    if any(part.shape[1] != size for part, size in zip(flat, sizes, strict=True)):
        raise conversion_error(node, "its inputs have other sizes than its inputdimensions")
    return torch.cat(flat, dim=1)


def _imputer(node: Node, x: Tensor) -> Tensor:
    missing, filling = node.get("replaced_value_float", 0.0), node.get("imputed_value_floats")
    if not filling:
        missing, filling = node.get("replaced_value_int64", 0), node.get("imputed_value_int64s")
    if not filling:
        raise conversion_error(node, "it has no imputed values")
    is_missing = torch.isnan(x) if math.isnan(missing) else x == missing
    return torch.where(is_missing, torch.tensor(filling, dtype=x.dtype, device=x.device), x)


def _label_encoder(node: Node, x: Tensor) -> Tensor:
    keys = _read_numbers(node, "keys")
    values = _read_numbers(node, "values")
    if keys is None or values is None:
        raise conversion_error(node, "it maps strings, and only numbers are read")
    is_float = any(isinstance(value, float) for value in values)
    fallback = node.get("default_float", -0.0) if is_float else node.get("default_int64", -1)
    given = node.get("default_tensor")
    result = torch.full_like(x, fallback if given is None else given.item(), dtype=torch.float32 if is_float else torch.int64)
    for key, value in zip(keys, values, strict=True):
        # NaN is a key like any other.
        result = torch.where(torch.isnan(x) if key != key else x == key, value, result)
    return result


def _read_numbers(node: Node, name: str) -> list[float] | list[int] | None:
    """Return the keys or values of a LabelEncoder, or None where they are strings."""
    for ending in ("floats", "int64s", "tensor"):
        given = node.get(f"{name}_{ending}")
        if given is not None:
            return given.flatten().tolist() if isinstance(given, Tensor) else list(given)
    return None


def _normalizer(node: Node, x: Tensor) -> Tensor:
    norm = node.get("norm", "MAX")
    if norm == "MAX":  # ONNX Runtime takes the largest number, not the largest size.
        length = x.amax(dim=1, keepdim=True)
    else:
        length = torch.linalg.vector_norm(x, {"L1": 1.0, "L2": 2.0}[norm], dim=1, keepdim=True)
    return torch.where(length == 0, x, x / torch.where(length == 0, 1.0, length))


def _one_hot_encoder(node: Node, x: Tensor) -> Tensor:
    levels = node.get("cats_int64s")
    if not levels:
        raise conversion_error(node, "its categories are strings, and only numbers are read")
    # Where zeros is 0, ONNX Runtime fails on an unknown category. No row of a table that it runs on has one.
    codes = x.long() if x.is_floating_point() else x
    return (codes.unsqueeze(-1) == torch.tensor(levels, device=x.device)).to(torch.float32)


#: Operators by type.
TABLE_OPERATORS: dict[str, Operator] = {
    "ArrayFeatureExtractor": _array_feature_extractor,
    "Binarizer": _binarizer,
    "FeatureVectorizer": _feature_vectorizer,
    "Imputer": _imputer,
    "LabelEncoder": _label_encoder,
    "Normalizer": _normalizer,
    "OneHotEncoder": _one_hot_encoder,
}
