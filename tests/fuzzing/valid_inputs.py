"""Small valid inputs of every kind, which the fuzzing tests damage."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load as load_tensors
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Categorical, Continuous, Integer, Ordinal

COLUMNS = 6


def draw_people(count: int = 40, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": draw.integers(18, 80, count),
            "income": draw.lognormal(7, 0.5, count).round(2),
            "hours-per-week": draw.integers(5, 60, count),
            "job": draw.choice(["clerk", "cook", "teacher, primary", "größer"], count),
            "grade": draw.choice(["low", "mid", "high"], count),
            "member": draw.choice([True, False], count),
        }
    )


@functools.cache
def build_action_sets() -> tuple[ActionSet, ...]:
    """Action sets on raw features, on an encoder's columns and on columns."""
    frame = draw_people()
    raw = ActionSet.from_frame(
        frame,
        immutable=["age"],
        increase_only=["grade"],
        ordinal={"grade": ["low", "mid", "high"]},
        bounds={"hours-per-week": (1, 80)},
        reachable={"job": ["cook", "clerk"]},
        effort={"income": 2.0},
        max_changes=3,
        favourable=1,
    )
    steps = [
        ("n", StandardScaler(), ["age", "income", "hours-per-week"]),
        ("c", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["job", "member"]),
        ("o", OrdinalEncoder(categories=[["low", "mid", "high"]]), ["grade"]),
    ]
    encoded = raw.encoded_by(ColumnTransformer(steps).fit(frame))
    columns = torch.tensor([[0.5, 3.0, 1.0, 0.0, 2.0], [1.5, 4.0, 0.0, 1.0, 0.0], [-1.0, 9.0, 0.0, 0.0, 1.0]])
    features = [
        Continuous("ratio", column=0, offset=2.0, scale=0.5, bounds=(0.0, None)),
        Integer("count", column=1, bounds=(0, 20)),
        Categorical("kind", levels=("a", None, "c"), columns=(2, 3, None), missing_as="nan"),
        Ordinal("stage", domain=(1, 2.5, 7), column=4, codes=(0.0, 1.0, 2.0), unknown=-1),
    ]
    placed = ActionSet.from_columns(columns, features, norm=("mix", 1.0, 0.5), weights="mad")
    return raw, encoded, placed


@functools.cache
def list_action_set_documents() -> tuple[dict[str, Any], ...]:
    with tempfile.TemporaryDirectory() as folder:
        documents = []
        for action_set in build_action_sets():
            action_set.save(Path(folder) / "a.yaml")
            documents.append(yaml.safe_load((Path(folder) / "a.yaml").read_text(encoding="utf-8")))
    return tuple(documents)


RECIPES: tuple[dict[str, Any], ...] = (
    {"schema": 1, "dataset": "synthetic"},
    {
        "schema": 1,
        "dataset": "synthetic",
        "actions": {
            "immutable": ["age", "sex"],
            "increase_only": ["education"],
            "bounds": {"income": [0, None]},
            "effort": {"income": 2.0},
            "max_changes": 3,
            "norm": {"l1": 1.0, "l2": 0.5},
            "weights": "mad",
        },
        "model": {"kind": "mlp", "hidden": [8, 8], "batch_norm": True, "dropout": 0.1},
        "training": {"epochs": 2, "learning_rate": 0.01},
        "calibration": {"rows": 64},
        "budgets": [4, 3.5],
        "methods": ["ptq", "faithful", "ort-int8"],
        "seeds": [0, 1],
    },
)


# ONNX files --------------------------------------------------------------------------------------------------------------------------


def draw_rows(count: int = 24, columns: int = COLUMNS, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


def _drawn(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def _node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, ["" if name == "-" else name for name in inputs.split()], outputs.split(), **attributes)


def _graph(
    nodes: list[onnx.NodeProto],
    held: Mapping[str, Any],
    kind: int = TensorProto.FLOAT,
    opset: int = 18,
    outputs: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", kind, ["N", COLUMNS])
    answers = [helper.make_tensor_value_info(name, element, None) for name, element in (outputs or {"y": kind}).items()]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [given], answers, stored), opset_imports=opsets, ir_version=10)


@functools.cache
def build_onnx_models() -> tuple[onnx.ModelProto, ...]:
    """Networks of layers, of images, in half and double precision, with labels beside the scores, and a quantized one."""
    layers = [_node("Gemm", "x W b", "h"), _node("Relu", "h", "k"), _node("MatMul", "k V", "z")]
    weights = {"W": _drawn(COLUMNS, 8), "b": _drawn(8), "V": _drawn(8, 2, seed=1)}
    plain = _graph([*layers, _node("Add", "z c", "y")], {**weights, "c": _drawn(2)})
    image = _graph(
        [
            _node("Reshape", "x s", "i"),
            _node("Conv", "i K", "f", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
            _node("BatchNormalization", "f g g m v", "n", epsilon=1e-3),
            _node("Clip", "n lo hi", "r"),
            _node("MaxPool", "r", "p", kernel_shape=[2, 2]),
            _node("Flatten", "p", "l"),
            _node("Gemm", "l V", "y", alpha=0.5),
        ],
        {
            **{"s": np.array([-1, 1, 2, 3]), "K": _drawn(3, 1, 2, 2), "g": np.ones(3, np.float32), "m": _drawn(3)},
            **{"v": np.full(3, 2.0, np.float32), "lo": np.float32(0), "hi": np.float32(6), "V": _drawn(6, 2)},
        },
    )
    both = _graph(
        [
            *layers,
            _node("Softmax", "z", "probabilities", axis=1),
            _node("ArgMax", "z", "a", axis=1, keepdims=0),
            _node("Gather", "names a", "label"),
        ],
        {**weights, "names": np.array([7, 9])},
        outputs={"label": TensorProto.INT64, "probabilities": TensorProto.FLOAT},
    )
    mixed = _graph(
        [
            _node("Split", "x sizes", "p q", axis=1),
            _node("Sub", "p mean", "c"),
            _node("Div", "c sigma", "d"),
            _node("Concat", "d q", "e", axis=1),
            _node("LayerNormalization", "e g b", "n", axis=-1),
            _node("MatMul", "n W", "h"),
            _node("Sigmoid", "h", "s"),
            _node("Mul", "h s", "w"),
            _node("ReduceMean", "w axes", "y", keepdims=1),
        ],
        {
            **{"sizes": np.array([2, 4]), "mean": _drawn(2), "sigma": np.ones(2, np.float32) * 2, "g": np.ones(6, np.float32)},
            **{"b": _drawn(6), "W": _drawn(6, 8), "axes": np.array([1])},
        },
    )
    halves = {name: value.astype(np.float16) for name, value in weights.items()}
    doubles = {name: value.astype(np.float64) for name, value in weights.items()}
    half = _graph([*layers, _node("Sigmoid", "z", "y")], {**halves, "V": _drawn(8, 1).astype(np.float16)}, TensorProto.FLOAT16)
    double = _graph([*layers, _node("Identity", "z", "y")], doubles, TensorProto.DOUBLE, opset=13)
    return plain, image, both, mixed, half, double, onnx.load_from_string(build_result().onnx_model().SerializeToString())


# Saved plans -------------------------------------------------------------------------------------------------------------------------


@functools.cache
def build_result() -> cfptq.Result:
    rows = draw_rows(64)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(COLUMNS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
        with torch.no_grad():
            scores = model(rows)
            model[3].bias[1] -= (scores[:, 1] - scores[:, 0]).median()
        space = ActionSet.from_columns(rows, [Continuous(f"f{column}", column=column) for column in range(COLUMNS)], favourable=1)
        return cfptq.calibrate(model, [rows], space, method="cf-ptq", progress=False)


@functools.cache
def read_saved_plan() -> Mapping[str, bytes]:
    """Files of a saved result, by their path in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        build_result().save(Path(folder) / "plan")
        paths = sorted(path for path in (Path(folder) / "plan").rglob("*") if path.is_file())
        return {path.relative_to(Path(folder) / "plan").as_posix(): path.read_bytes() for path in paths}


def seal_plan(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files with every digest made to fit, as somebody does who edits a plan with care."""
    sealed = dict(files)
    if {"plan.json", "plan.safetensors"} <= sealed.keys():
        head = _as_object(sealed["plan.json"])
        if head is not None:
            head.pop("digest", None)
            digest = hashlib.sha256(_to_json(head) + b"\0" + sealed["plan.safetensors"]).hexdigest()
            sealed["plan.json"] = _to_json({**head, "digest": digest})
    if {"network/network.json", "network/network.safetensors"} <= sealed.keys():
        document = _as_object(sealed["network/network.json"])
        if document is not None:
            try:
                tensors = load_tensors(sealed["network/network.safetensors"])
                sealed["network/network.json"] = _to_json({**document, "tensors_sha256": _digest_tensors(tensors)})
            except Exception:
                pass
    content = _as_object(sealed.get("result.json", b""))
    if content is not None:
        if isinstance(content.get("files"), dict):
            for name in content["files"]:
                if name in sealed:
                    content["files"][name] = {"bytes": len(sealed[name]), "sha256": hashlib.sha256(sealed[name]).hexdigest()}
        content.pop("digest", None)
        sealed["result.json"] = _to_json({**content, "digest": hashlib.sha256(_to_json(content)).hexdigest()})
    return sealed


def _as_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return total.hexdigest()


# Tables ------------------------------------------------------------------------------------------------------------------------------


@functools.cache
def write_tables() -> Mapping[str, bytes]:
    """A table of people as CSV, as packed CSV and as Parquet, by ending."""
    import gzip

    frame = draw_people(12)
    frame.loc[3, "job"] = None
    text = frame.to_csv(index=False).encode()
    parquet = io.BytesIO()
    frame.to_parquet(parquet)
    return {".csv": text, ".csv.gz": gzip.compress(text, mtime=0), ".parquet": parquet.getvalue()}
