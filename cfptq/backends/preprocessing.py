"""A fitted scikit-learn encoder as ONNX nodes before a model, from raw columns to the model's columns.

Each raw column is an input of its own. Numbers are computed in float64, as scikit-learn does, and rounded to float32 once. A category, bin
or missing value is looked up in a table of the values that its columns then have.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper

from cfptq.actions.column_mapping import TracedColumn
from cfptq.actions.curves import NamedFunction, NumberEncoder, PowerCurve, QuantileCurve, Scaling
from cfptq.actions.features import INFREQUENT
from cfptq.actions.scikit_learn import trace_encoder
from cfptq.actions.validation import Level
from cfptq.backends.normal_quantile import add_normal_quantile
from cfptq.errors import ModelError
from cfptq.network.onnx.raw_inputs import COLUMNS_KEY, MISSING_TEXT, RAW_TYPES

#: Opset of the nodes, and that of the table of words.
OPSET, OPSET_ML = 17, 3
#: Below this size of its argument, ``expm1`` is computed by its series.
_SMALL = 1e-5
#: A power below this size is a logarithm within float64.
_NO_POWER = 1e-12


@dataclass
class Nodes:
    """Nodes under construction, with names of their own."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]
    prefix: str

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its only output."""
        name = f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], f"{name}_{operator}", domain=domain, **attributes))
        return name

    def hold(self, values: Any, dtype: Any = np.float64) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def cast(self, name: str, kind: int) -> str:
        """Add a cast to an ONNX element type."""
        return self.add("Cast", name, to=kind)


def add_preprocessing(model: onnx.ModelProto, encoder: Any, frame: pd.DataFrame | None = None) -> onnx.ModelProto:
    """Return a model that takes raw columns and computes the columns of ``model`` by the nodes of a fitted encoder.

    Args:
        model: takes float32 rows (N, d).
        encoder: the fitted encoder, whose predictor at the end is ignored.
        frame: raw rows, which tell the types of the inputs. By default numbers are float64, and categories what they are.

    Raises:
        ActionSetError: the encoder has a step that cannot be read.
        ModelError: a step has no form as ONNX nodes, or gives another number of columns than the model takes.
    """
    names, traced = trace_encoder(encoder)
    (rows,) = [value for value in model.graph.input if value.name not in {tensor.name for tensor in model.graph.initializer}]
    shape = rows.type.tensor_type.shape.dim
    if rows.type.tensor_type.elem_type != TensorProto.FLOAT or len(shape) != 2:
        raise ModelError("Preprocessing needs a model that takes float32 columns of shape (N, d). Export the model without it.")
    if shape[1].dim_value not in (0, len(traced)):
        raise ModelError(f"The encoder must give the {shape[1].dim_value} columns that the model takes, got {len(traced)}.")
    used = [name for name in names if any(column.feature == name for column in traced)]
    kinds = {name: _choose_type(name, traced, frame) for name in used}
    out = Nodes([], [], f"{rows.name}_from_raw_")
    parts = [_add_block(out, kinds, block) for block in _split_blocks(traced)]
    out.nodes.append(helper.make_node("Concat", parts, [rows.name], f"{rows.name}_from_raw", axis=1))
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    taken = {tensor.name for tensor in model.graph.initializer} | {name for node in model.graph.node for name in node.output}
    clash = sorted(taken & {*used})
    if clash or rows.name in used:
        raise ModelError(f"The raw column {(clash or [rows.name])[0]!r} has the name of a tensor of the model. Rename the column.")
    graph = joined.graph
    own = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*out.nodes, *graph.node)]
    del graph.node[:], graph.input[:]
    graph.node.extend(own)
    graph.initializer.extend(out.constants)
    graph.input.extend(helper.make_tensor_value_info(name, kinds[name], [None, 1]) for name in used)
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    graph.value_info.append(helper.make_tensor_value_info(rows.name, TensorProto.FLOAT, [None, len(traced)]))
    domains = {entry.domain: entry for entry in joined.opset_import}
    if any(node.domain == "ai.onnx.ml" for node in out.nodes) and "ai.onnx.ml" not in domains:
        joined.opset_import.append(helper.make_opsetid("ai.onnx.ml", OPSET_ML))
    for entry in joined.opset_import:
        entry.version = max(entry.version, OPSET) if entry.domain in ("", "ai.onnx") else entry.version
    helper.set_model_props(joined, {entry.key: entry.value for entry in joined.metadata_props} | {COLUMNS_KEY: rows.name})
    return joined


def _choose_type(name: str, traced: Sequence[TracedColumn], frame: pd.DataFrame | None) -> int:
    """Return the ONNX element type of a raw column."""
    categories = [level for column in traced if column.feature == name and column.edges is None for level in column.categories]
    words = [level for level in (*categories, *(c.fill for c in traced if c.feature == name)) if isinstance(level, str)]
    if frame is not None and name in frame.columns:
        dtype = frame[name].dtype
        if isinstance(dtype, np.dtype) and dtype.name in RAW_TYPES and not words:
            return RAW_TYPES[dtype.name]
    if words:
        return int(TensorProto.STRING)
    present = [level for level in categories if level is not None]
    if present and all(isinstance(level, bool) for level in present):
        return int(TensorProto.BOOL)
    if present and None not in categories and all(isinstance(level, int) for level in present):
        return int(TensorProto.INT64)
    return int(TensorProto.DOUBLE)


def _split_blocks(traced: Sequence[TracedColumn]) -> Iterator[list[TracedColumn]]:
    """Yield runs of columns that one look-up gives, and each other column alone."""

    def identify(column: TracedColumn) -> tuple[Any, ...]:
        return (column.feature, column.group, column.categories) if column.base == "slot" else (id(column),)

    for _, block in itertools.groupby(traced, identify):
        yield list(block)


def _add_block(out: Nodes, kinds: dict[str, int], block: list[TracedColumn]) -> str:
    """Add the nodes of neighbouring columns of one raw column, and return the name of their float32 values."""
    column = block[0]
    kind = kinds[column.feature]
    if column.base == "raw":
        return _add_number(out, kind, column)
    if column.base == "missing":
        is_missing = _add_missing(out, kind, column.feature)
        table = [[column.encode_base(0.0)], [column.encode_base(1.0)]]
        return _look_up(out, out.cast(is_missing, TensorProto.INT64), table)
    if column.curve:
        raise ModelError(f"A curve follows the categories of {column.feature!r}, which has no form as ONNX nodes. Encode the raw column.")
    if column.edges is not None:
        return _add_bins(out, kind, block)
    return _add_categories(out, kind, block)


def _add_missing(out: Nodes, kind: int, name: str) -> str:
    """Add whether the raw value is missing, (N, 1) booleans."""
    if kind == TensorProto.STRING:
        place = out.add("LabelEncoder", name, domain="ai.onnx.ml", keys_strings=[MISSING_TEXT], values_int64s=[1], default_int64=0)
        return out.cast(place, TensorProto.BOOL)
    return out.add("IsNaN", out.cast(name, TensorProto.DOUBLE))


def _look_up(out: Nodes, place: str, table: Any) -> str:
    """Look up rows of a table (R, C) at places (N, 1), and return the float32 values (N, C)."""
    flat = out.add("Reshape", place, out.hold([-1], np.int64))
    return out.add("Gather", out.hold(table, np.float32), flat, axis=0)


def _add_number(out: Nodes, kind: int, column: TracedColumn) -> str:
    if kind == TensorProto.STRING:
        raise ModelError(f"The frame holds text in {column.feature!r}, which the encoder passes on as a number. Convert it.")
    value = out.cast(column.feature, TensorProto.DOUBLE)
    if isinstance(column.fill, int | float):
        value = out.add("Where", out.add("IsNaN", value), out.hold([[float(column.fill)]]), value)
    for curve in (*column.curve, Scaling(column.offset, column.scale)):
        value = _add_curve(out, value, curve, column.feature)
    return out.cast(value, TensorProto.FLOAT)


def _add_bins(out: Nodes, kind: int, block: list[TracedColumn]) -> str:
    column = block[0]
    assert column.edges is not None
    value = out.cast(column.feature, TensorProto.DOUBLE)
    if isinstance(column.fill, int | float):
        value = out.add("Where", out.add("IsNaN", value), out.hold([[float(column.fill)]]), value)
    if column.edges:
        at_or_above = out.cast(out.add("GreaterOrEqual", value, out.hold([column.edges])), TensorProto.INT64)
        place = out.add("ReduceSum", at_or_above, out.hold([1], np.int64), keepdims=1)
    else:
        place = out.cast(out.add("Mul", value, out.hold([[0.0]])), TensorProto.INT64)
    count = len(column.edges) + 1
    place = out.add("Where", out.add("IsNaN", value), out.hold([[count]], np.int64), place)
    return _look_up(out, place, [_show_level(block, level) for level in column.categories] + [_show_missing(block)])


def _add_categories(out: Nodes, kind: int, block: list[TracedColumn]) -> str:
    column = block[0]
    state_of: dict[Level, Level] = {level: level for level in column.categories if level is not None}
    state_of.update(column.merged)
    if INFREQUENT in state_of and column.unknown == "merged":
        del state_of[INFREQUENT]
    values = list(state_of)
    table = [_show_level(block, state_of[value]) for value in values] + [_show_missing(block), _show_unknown(block)]
    if kind == TensorProto.STRING:
        if not all(isinstance(value, str) for value in values):
            raise ModelError(f"The categories of {column.feature!r} are text and numbers, which no ONNX input holds. Use one type.")
        words = [*values, *([] if MISSING_TEXT in values else [MISSING_TEXT])]
        place = out.add(
            "LabelEncoder",
            column.feature,
            domain="ai.onnx.ml",
            keys_strings=words,
            values_int64s=list(range(len(words))),
            default_int64=len(values) + 1,
        )
        return _look_up(out, place, table)
    value = out.cast(column.feature, TensorProto.DOUBLE)
    is_value = out.cast(out.add("Equal", value, out.hold([[float(v) for v in values]])), TensorProto.FLOAT)  # type: ignore[arg-type]
    is_missing = out.cast(out.add("IsNaN", value), TensorProto.FLOAT)
    rest = out.hold([[0.5]], np.float32)  # It is the largest exactly where no other is.
    rest = out.add("Add", out.add("Mul", is_missing, out.hold([[0.0]], np.float32)), rest)
    flags = out.add("Concat", is_value, is_missing, rest, axis=1)
    return _look_up(out, out.add("ArgMax", flags, axis=1, keepdims=1), table)


def _show_level(block: list[TracedColumn], level: Level) -> list[float]:
    """Return the values of the columns at a category."""
    if block[0].base == "code":
        return [column.encode_base(column.get_code(level)) for column in block]
    return [column.encode_base(float(column.categories[column.place] == level)) for column in block]


def _show_missing(block: list[TracedColumn]) -> list[float]:
    column = block[0]
    if column.fill is not None and column.edges is None:
        return _show_level(block, dict(column.merged).get(column.fill, column.fill))
    if column.missing_code is not None:
        return [column.encode_base(column.missing_code)]
    return _show_level(block, None) if None in column.categories else _show_unknown(block)


def _show_unknown(block: list[TracedColumn]) -> list[float]:
    """Return the values of the columns at an unlisted value, NaN where the encoder refuses it."""
    unknown = block[0].unknown
    if unknown == "merged":
        return _show_level(block, INFREQUENT)
    if unknown == "zeros" and block[0].base == "slot":
        return [column.encode_base(0.0) for column in block]
    return [np.nan if isinstance(unknown, str) else column.encode_base(unknown) for column in block]


def _add_curve(out: Nodes, value: str, curve: NumberEncoder, name: str) -> str:
    if isinstance(curve, Scaling):
        shifted = value if curve.offset == 0 else out.add("Sub", value, out.hold(curve.offset))
        return shifted if curve.scale == 1 else out.add("Div", shifted, out.hold(curve.scale))
    if isinstance(curve, NamedFunction):
        return _add_function(out, value, curve.name)
    if isinstance(curve, PowerCurve):
        return _add_power(out, value, curve)
    if isinstance(curve, QuantileCurve):
        return _add_quantiles(out, value, curve)
    kind = type(curve).__name__
    raise ModelError(
        f"The encoder of {name!r} ({kind if kind != 'FunctionPair' else 'FunctionTransformer with a function of your own'}) has no form as "
        "ONNX nodes. Use one of NumPy's functions log1p, log, log2, sqrt, cbrt and arcsinh, or export the model without preprocessing."
    )


def _add_log1p(out: Nodes, value: str) -> str:
    """Add log(1 + x), exact for small x too (Kahan)."""
    one = out.hold(1.0)
    sum_ = out.add("Add", value, one)
    rest = out.add("Sub", sum_, one)
    is_small = out.add("Equal", rest, out.hold(0.0))
    safe = out.add("Where", is_small, one, rest)
    return out.add("Where", is_small, value, out.add("Div", out.add("Mul", out.add("Log", sum_), value), safe))


def _add_expm1(out: Nodes, value: str) -> str:
    """Add exp(x) - 1, by its series for small x."""
    half, sixth = out.hold(0.5), out.hold(1 / 6)
    series = out.add("Mul", value, out.add("Add", half, out.add("Mul", value, sixth)))
    series = out.add("Mul", value, out.add("Add", out.hold(1.0), series))
    is_small = out.add("Less", out.add("Abs", value), out.hold(_SMALL))
    return out.add("Where", is_small, series, out.add("Sub", out.add("Exp", value), out.hold(1.0)))


def _add_function(out: Nodes, value: str, name: str) -> str:
    if name == "log1p":
        return _add_log1p(out, value)
    if name in ("log", "log2"):
        logarithm = out.add("Log", value)
        return logarithm if name == "log" else out.add("Div", logarithm, out.hold(np.log(2.0)))
    if name == "sqrt":
        return out.add("Sqrt", value)
    size = out.add("Abs", value)
    if name == "cbrt":
        result = out.add("Pow", size, out.hold(1 / 3))
    else:  # arcsinh
        square = out.add("Mul", size, size)
        root = out.add("Add", out.hold(1.0), out.add("Sqrt", out.add("Add", out.hold(1.0), square)))
        result = _add_log1p(out, out.add("Add", size, out.add("Div", square, root)))
    return out.add("Mul", result, out.add("Sign", value))


def _add_box_cox(out: Nodes, log: str, exponent: float) -> str:
    """Add ((x + 1)^λ - 1) / λ for log(x + 1), or that logarithm where λ is 0."""
    if abs(exponent) < _NO_POWER:
        return log
    return out.add("Div", _add_expm1(out, out.add("Mul", log, out.hold(exponent))), out.hold(exponent))


def _add_power(out: Nodes, value: str, curve: PowerCurve) -> str:
    if curve.method == "box-cox":
        return _add_box_cox(out, out.add("Log", value), curve.exponent)
    zero = out.hold(0.0)
    up = _add_box_cox(out, _add_log1p(out, out.add("Max", value, zero)), curve.exponent)
    down = _add_box_cox(out, _add_log1p(out, out.add("Max", out.add("Neg", value), zero)), 2.0 - curve.exponent)
    return out.add("Where", out.add("GreaterOrEqual", value, zero), up, out.add("Neg", down))


def _add_quantiles(out: Nodes, value: str, curve: QuantileCurve) -> str:
    """Add the mean of the interpolations from below and from above, as ``QuantileTransformer`` computes it."""
    knots, shares = np.array(curve.quantiles), np.array(curve.references)
    widths = np.diff(knots)
    slopes = np.divide(np.diff(shares), widths, out=np.zeros_like(widths), where=widths > 0)
    inside = out.add("Min", out.add("Max", value, out.hold(knots[0])), out.hold(knots[-1]))
    ends: list[str] = []
    # From below the segment after the last knot at or below x, from above the segment before the first knot at or above x.
    for operator, known, base in (("GreaterOrEqual", knots[:-1], 0), ("Greater", knots[:-1], 1)):
        passed = out.cast(out.add(operator, inside, out.hold(known[None, :])), TensorProto.INT64)
        place = out.add("Sub", out.add("ReduceSum", passed, out.hold([1], np.int64), keepdims=1), out.hold([[1]], np.int64))
        place = out.add("Max", place, out.hold([[0]], np.int64))
        x0 = out.add("Gather", out.hold(knots[base : len(knots) - 1 + base]), place, axis=0)
        y0 = out.add("Gather", out.hold(shares[base : len(shares) - 1 + base]), place, axis=0)
        slope = out.add("Gather", out.hold(slopes), place, axis=0)
        ends.append(out.add("Add", out.add("Mul", out.add("Sub", inside, x0), slope), y0))
    result = out.add("Mul", out.add("Add", *ends), out.hold(0.5))
    one, zero = out.hold(1.0), out.hold(0.0)
    if curve.distribution == "uniform":
        result = out.add("Where", out.add("GreaterOrEqual", value, out.hold(knots[-1])), one, result)
        return out.add("Where", out.add("LessOrEqual", value, out.hold(knots[0])), zero, result)
    slack = out.hold(1e-7)
    result = out.add("Where", out.add("Greater", out.add("Add", value, slack), out.hold(knots[-1])), one, result)
    result = out.add("Where", out.add("Less", out.add("Sub", value, slack), out.hold(knots[0])), zero, result)
    return add_normal_quantile(out.add, out.hold, result)


def list_raw_columns(encoder: Any) -> tuple[str, ...]:
    """Return the names of the raw columns that a fitted encoder passes on, in the order of its frame."""
    names, traced = trace_encoder(encoder)
    used = {column.feature for column in traced}
    return tuple(name for name in names if name in used)


def make_raw_rows(encoder: Any, columns: npt.NDArray[np.float32], seed: int) -> pd.DataFrame:
    """Return raw rows that a fitted encoder takes, whose numbers encode to values of the given columns.

    Args:
        encoder: the fitted encoder.
        columns: rows (N, d) of the model's columns.
        seed: seed of the categories, which are drawn.
    """
    from cfptq.actions.features import Continuous

    names, traced = trace_encoder(encoder)
    generator = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for place, column in enumerate(traced):
        if column.feature in made or column.base == "missing":
            continue
        if column.base == "raw":
            number = Continuous(column.feature, column=0, offset=column.offset, scale=column.scale, curve=column.curve)
            values = number.decode_numbers(columns[:, place])
            is_finite = np.isfinite(values)
            made[column.feature] = np.where(is_finite, values, np.median(values[is_finite]) if is_finite.any() else 1.0)
        elif column.edges is not None:
            ends = np.array(column.edges or (0.0,))
            spread = max(1.0, float(np.ptp(ends)))
            made[column.feature] = generator.uniform(ends[0] - spread, ends[-1] + spread, len(columns))
        else:
            levels = [level for level in (*column.categories, *(value for value, _ in column.merged)) if level not in (None, INFREQUENT)]
            made[column.feature] = pd.Series([levels[number] for number in generator.integers(0, len(levels), len(columns))])
    return pd.DataFrame({name: made.get(name, 0.0) for name in names})
