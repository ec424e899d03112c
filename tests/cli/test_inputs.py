"""What the commands read, and what they refuse to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cfptq.cli.inputs import as_audited, as_loader, as_pins, get_column, read_module
from cfptq.errors import ConfigurationError, DataError, ModelError

FRAME = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]})


class Columns:
    """Stands for an encoded action set."""

    def encode(self, frame: pd.DataFrame) -> str:
        return f"{len(frame)} rows"


def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'c'\. Its columns are a, b"):
        get_column(FRAME, "c", tmp_path / "rows.csv")


def test_labels_travel_with_the_rows_and_gaps_become_minus_one() -> None:
    frame = FRAME.assign(y=[1.0, np.nan])
    assert as_loader(frame, Columns(), None) == ["2 rows"]  # type: ignore[arg-type]
    [(rows, labels)] = as_loader(frame, Columns(), "y")  # type: ignore[arg-type]
    assert rows == "2 rows"
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, -1]


def test_pins_are_name_and_bits() -> None:
    assert as_pins(["head=8", "hidden.0=4", "a=b=2"]) == {"head": 8, "hidden.0": 4, "a=b": 2}
    for entry in ("head", "head=", "=8", "head=four", "head=-8"):
        with pytest.raises(ConfigurationError, match="NAME=BITS"):
            as_pins([entry])


def test_an_onnx_file_is_audited_as_it_is_and_takes_no_state(tmp_path: Path) -> None:
    assert as_audited("some/model.onnx", None) == "some/model.onnx"
    with pytest.raises(ModelError, match="--state needs a model"):
        read_module("some/model.onnx", tmp_path / "state.safetensors")


def test_an_output_belongs_to_an_onnx_file() -> None:
    with pytest.raises(ModelError, match="--output needs an ONNX file"):
        read_module("package.module:build", None, "logits")
