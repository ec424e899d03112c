"""A loader's rows are drawn evenly, within bounds, and the same however they are batched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cfptq.calibration import draw_rows
from cfptq.errors import DataError


def _numbered(count: int, batch: int, width: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows that carry their own number, labelled by its parity."""
    for first in range(0, count, batch):
        number = torch.arange(first, min(first + batch, count))
        yield number[:, None].expand(-1, width).float(), number % 2


def test_the_same_rows_are_drawn_whatever_the_batch_size() -> None:
    drawn = [draw_rows(_numbered(5000, batch), max_rows=300, seed=4) for batch in (1, 7, 256, 5000)]
    for rows, labels in drawn:
        assert torch.equal(rows, drawn[0][0])
        assert labels is not None and torch.equal(labels, rows[:, 0].long() % 2)
    assert len(drawn[0][0]) == 300 and bool((drawn[0][0][1:, 0] > drawn[0][0][:-1, 0]).all())


def test_seeds_draw_differently_and_every_row_is_as_likely() -> None:
    hits = np.zeros(400)
    for seed in range(200):
        rows, _ = draw_rows(_numbered(400, 64), max_rows=40, seed=seed)
        assert len(rows.unique(dim=0)) == 40
        hits[rows[:, 0].long().numpy()] += 1
    # 200 draws at one in ten: mean 20, standard deviation 4.2; no row and no stretch of the stream is favoured.
    assert abs(hits.reshape(4, 100).mean(1) - 20).max() < 1.5 and hits.max() < 20 + 6 * 4.25


def test_a_short_loader_is_kept_whole_and_in_order() -> None:
    rows, labels = draw_rows(_numbered(50, 8), max_rows=4096)
    assert torch.equal(rows[:, 0], torch.arange(50.0)) and labels is not None and len(labels) == 50


def test_memory_is_bounded_and_the_loaders_buffer_is_not_kept() -> None:
    buffer = torch.zeros(1000, 2)

    def reused() -> Iterator[Tensor]:
        for number in range(200):
            buffer.fill_(number)
            yield buffer

    rows, labels = draw_rows(reused(), max_rows=64)
    assert labels is None and rows.untyped_storage().nbytes() == 64 * 2 * 4
    assert len(rows[:, 0].unique()) > 30


FRAME = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
ROWS = torch.tensor([[1.0, 3.0], [2.0, 4.0]])


@pytest.mark.parametrize(
    ("loader", "labels"),
    [
        (ROWS, None),
        (ROWS.numpy().astype(np.float64), None),
        ((ROWS, torch.tensor([0, 1])), [0, 1]),
        ([ROWS[:1], ROWS[1:]], None),
        ((ROWS[:1], ROWS[1:]), None),
        ([(ROWS, np.array([[0], [1]]))], [0, 1]),
        ([[ROWS, torch.tensor([0.0, 1.0])]], [0, 1]),
        ([{"features": ROWS, "label": torch.tensor([True, False])}], [1, 0]),
        ({"x": ROWS, "y": [0, 1]}, [0, 1]),
        (DataLoader(TensorDataset(ROWS, torch.tensor([0, 1])), batch_size=1), [0, 1]),
        (FRAME, None),
        ([(FRAME, pd.Series([1, 0]))], [1, 0]),
    ],
)
def test_every_usual_kind_of_batch_is_read(loader: Any, labels: list[int] | None) -> None:
    rows, drawn = draw_rows(loader, encode=lambda frame: torch.tensor(frame.to_numpy(), dtype=torch.float32))
    assert torch.equal(rows, ROWS) and rows.dtype == torch.float32
    assert (drawn.tolist() if drawn is not None else None) == labels


def test_images_pass_through() -> None:
    rows, _ = draw_rows([torch.rand(8, 1, 4, 4), torch.rand(3, 1, 4, 4)], max_rows=10)
    assert rows.shape == (10, 1, 4, 4)


def test_a_shuffling_loader_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    draw_rows(DataLoader(TensorDataset(ROWS), batch_size=1, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        ([], "no rows"),
        (iter(()), "no rows"),
        ([ROWS, torch.tensor([[0.0, float("nan")]])], "rows 2 .*batch 1"),
        ([torch.tensor([[0.0, float("inf")]])], "rows 0"),
        ([ROWS, torch.zeros(2, 3)], r"\(3,\) in batch 1"),
        ([ROWS.long()], "int64"),
        ([np.array([["a", "b"]])], "floats"),
        ([ROWS[0]], "DataLoader"),
        ([FRAME], "encode"),
        ([ROWS.to_sparse()], "must be dense, got sparse rows"),
        (scipy.sparse.csr_matrix(ROWS.numpy()), "must give dense rows, got sparse rows"),
        ([(ROWS, torch.tensor([1]))], "1 labels"),
        ([(ROWS, torch.tensor([0.5, 1.0]))], "whole numbers"),
        ([(ROWS, torch.zeros(2, 2))], "one class index a row"),
        ([(ROWS, ["yes", "no"])], "no numbers"),
        ([(ROWS, torch.tensor([0, 1])), ROWS], "no labels"),
        ([(ROWS, ROWS, ROWS)], "3 parts"),
        ([{"rows": ROWS}], "batch 0 is a mapping"),
        (["abc"], "str"),
        ("rows.csv", "loader must be"),
        (7, "loader must be"),
    ],
)
def test_what_cannot_be_read_is_refused(loader: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        draw_rows(loader)


def test_max_rows_must_be_positive() -> None:
    with pytest.raises(DataError, match="max_rows"):
        draw_rows([ROWS], max_rows=0)


def test_a_mapping_names_its_rows_in_any_case_and_is_no_person() -> None:
    rows, labels = draw_rows([{"X": ROWS, "Labels": torch.tensor([0, 1])}], progress=False)
    assert torch.equal(rows, ROWS) and labels is not None and labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"batch 0 is a mapping.* got the keys 'age', 'job'.* Give a DataFrame"):
        draw_rows([{"age": 3, "job": "cook"}, {"age": 4, "job": "clerk"}], progress=False)
