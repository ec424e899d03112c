"""Draw a bounded, seeded sample of a loader's rows that does not depend on the size of its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.columns import is_sparse
from cfptq.errors import DataError, name_rows
from cfptq.io.progress import track
from cfptq.network.state import preserved_state

#: Names of rows in a batch that is a mapping, in the order of trial.
ROW_NAMES = ("x", "input", "inputs", "features", "columns", "data", "image", "images", "pixel_values")

#: Names of labels in a batch that is a mapping, in the order of trial.
LABEL_NAMES = ("y", "label", "labels", "target", "targets")

#: Turns a DataFrame batch into columns (n, d).
Encode = Callable[[pd.DataFrame], Tensor]


def draw_rows(
    loader: Iterable[Any], *, max_rows: int = 4096, seed: int = 0, encode: Encode | None = None, progress: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Draw at most ``max_rows`` rows of a loader, each equally likely, in the loader's order.

    Every row gets a random key, and the rows with the smallest keys are kept. Keys are drawn one a row in the loader's order, so the
    sample does not depend on batching. Memory holds ``2 * max_rows`` rows and one batch. The loader is read to its end, once. Global
    random states are restored afterwards.

    Args:
        loader: an iterable of batches, or one table. A batch is a float tensor or array (n, ...), a DataFrame (with ``encode``), a
            pair (rows, labels), or a mapping with one of the names in ``ROW_NAMES`` and perhaps one of ``LABEL_NAMES``.
        max_rows: most rows kept.
        seed: seed of the keys.
        encode: turns a DataFrame batch into columns, such as ``action_set.encode``. Without it, DataFrames are refused.
        progress: whether a progress bar may be shown.

    Returns:
        Rows (n, ...) float32, and labels (n,) int64, or None where the loader gives none.

    Raises:
        DataError: the loader is empty, rows hold NaN or infinity, are no floats or change their shape, or labels are no integers or
            do not fit the rows.
    """
    if max_rows < 1:
        raise DataError(f"max_rows must be at least 1, got {max_rows}.")
    reservoir = _Reservoir(max_rows, seed)
    with preserved_state():
        for number, batch in enumerate(track(_list_batches(loader), "drawing rows", total=_count_batches(loader), enabled=progress)):
            rows, labels = _split(batch, number, encode)
            reservoir.offer(_as_rows(rows, number), None if labels is None else _as_labels(labels, number), number)
    return reservoir.contents()


class _Reservoir:
    """A sample of the rows that were offered so far, those with the smallest random keys."""

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.keys = np.empty(0)
        self.limit = np.inf
        self.generator = np.random.default_rng(seed)
        self.seen = 0
        self.shape: tuple[int, ...] | None = None
        self.labelled: bool | None = None
        self.pending = 0
        self.parts: list[tuple[np.ndarray, np.ndarray, Tensor, Tensor | None]] = []

    def offer(self, rows: Tensor, labels: Tensor | None, number: int) -> None:
        """Draw keys for the rows of batch ``number``, and keep the rows whose keys are small enough."""
        if len(rows) == 0:
            return
        self._check(rows, labels, number)
        keys = self.generator.random(len(rows))
        taken = np.flatnonzero(keys < self.limit)
        # A large batch is taken in pieces, to bound memory.
        for piece in np.array_split(taken, max(1, -(-len(taken) // self.capacity))):
            piece = piece[keys[piece] < self.limit]
            if len(piece) == 0:
                continue
            index = torch.from_numpy(piece)
            # Indexing copies, so that none of the loader's own buffers is kept.
            self.parts.append((keys[piece], self.seen + piece, rows[index].to(torch.float32), None if labels is None else labels[index]))
            self.pending += len(piece)
            if self.pending > 2 * self.capacity:
                self._shrink()
        self.seen += len(rows)

    def contents(self) -> tuple[Tensor, Tensor | None]:
        """Return the sampled rows and labels, in the order of the loader."""
        if self.seen == 0:
            raise DataError("the loader gave no rows. A generator can be read only once. Give a fresh one, or a list of batches.")
        self._shrink()
        _, positions, rows, labels = self.parts[0]
        order = torch.from_numpy(np.argsort(positions))
        return rows[order], None if labels is None else labels[order]

    def _shrink(self) -> None:
        """Drop all but the rows with the smallest keys."""
        keys, positions = (np.concatenate([part[i] for part in self.parts]) for i in (0, 1))
        rows = torch.cat([part[2] for part in self.parts])
        given = [part[3] for part in self.parts if part[3] is not None]
        labels = torch.cat(given) if given else None
        if len(keys) > self.capacity:
            # Ties go to the earlier row.
            kept = np.lexsort((positions, keys))[: self.capacity]
            index = torch.from_numpy(kept)
            keys, positions, rows, labels = keys[kept], positions[kept], rows[index], None if labels is None else labels[index]
        if len(keys) == self.capacity:
            self.limit = float(keys.max())
        self.parts = [(keys, positions, rows, labels)]
        self.pending = len(keys)

    def _check(self, rows: Tensor, labels: Tensor | None, number: int) -> None:
        """Check that a batch fits those before it and holds finite numbers."""
        if self.shape is None:
            self.shape, self.labelled = tuple(rows.shape[1:]), labels is not None
        if tuple(rows.shape[1:]) != self.shape:
            raise DataError(
                f"all rows must have the shape of the first batch, {self.shape}, got {tuple(rows.shape[1:])} in batch {number}."
            )
        if (labels is not None) != self.labelled:
            has, had = ("has labels", "had none") if labels is not None else ("has no labels", "had some")
            raise DataError(f"labels must come with every batch or with none. Batch {number} {has}, and the first one {had}.")
        if labels is not None and len(labels) != len(rows):
            raise DataError(f"batch {number} must have one label for each of its {len(rows)} rows, got {len(labels)} labels.")
        if not bool(torch.isfinite(rows.sum())):
            bad = (~torch.isfinite(rows).flatten(1).all(1)).nonzero()[:, 0]
            if len(bad):
                named = name_rows((bad + self.seen).tolist())
                raise DataError(f"rows must be finite, and rows {named} of the loader (batch {number}) hold NaN or infinity. Drop them.")


def _list_batches(loader: Iterable[Any]) -> Iterable[Any]:
    """Return the loader's batches. A table is one batch."""
    if is_sparse(loader):
        raise DataError(f"a loader must give dense rows, got sparse rows ({type(loader).__name__}). Call .toarray() or .to_dense() first.")
    if isinstance(loader, Tensor | np.ndarray | pd.DataFrame | Mapping) or _is_pair(loader):
        return (loader,)
    if isinstance(loader, str | bytes) or not isinstance(loader, Iterable):
        raise DataError(f"a loader must be an iterable of batches, a tensor, an array or a DataFrame, got a {type(loader).__name__}.")
    return loader


def _is_pair(loader: Any) -> bool:
    """Tell a pair (rows, labels) of a whole table from a tuple of two batches."""
    if not (isinstance(loader, tuple) and len(loader) == 2):
        return False
    rows, labels = loader
    table = Tensor | np.ndarray | pd.DataFrame | pd.Series
    return isinstance(rows, table) and isinstance(labels, table) and rows.ndim >= 2 and labels.ndim == 1


def _count_batches(loader: Any) -> int | None:
    """Return the number of batches, or None where the loader does not know."""
    if is_sparse(loader):
        return None
    try:
        return len(loader) if not isinstance(loader, Tensor | np.ndarray | pd.DataFrame | Mapping) else 1
    except TypeError:
        return None


def _split(batch: Any, number: int, encode: Encode | None) -> tuple[Tensor | np.ndarray, Any]:
    """Return rows and labels of one batch, rows as columns."""
    labels = None
    rows = batch
    if isinstance(batch, Mapping):
        rows, labels = _get_entry(batch, ROW_NAMES), _get_entry(batch, LABEL_NAMES)
        if rows is None:
            raise DataError(
                f"batch {number} is a mapping, so it must hold many rows under one of {', '.join(ROW_NAMES)}, got the keys "
                f"{', '.join(map(repr, list(batch)[:20]))}. Give a DataFrame instead of one mapping a person."
            )
    elif isinstance(batch, tuple | list):
        if len(batch) not in (1, 2):
            raise DataError(f"batch {number} must be rows or a pair (rows, labels), got {len(batch)} parts.")
        rows, labels = batch[0], batch[1] if len(batch) == 2 else None
    if is_sparse(rows):
        raise DataError(f"rows of batch {number} must be dense, got sparse rows ({type(rows).__name__}). Call .toarray() or .to_dense().")
    if isinstance(rows, pd.DataFrame):
        if encode is None:
            raise DataError(f"batch {number} is a DataFrame of raw features, and needs encode=action_set.encode, or columns.")
        rows = encode(rows)
    if not isinstance(rows, Tensor | np.ndarray):
        raise DataError(f"rows of batch {number} must be a tensor, an array or a DataFrame, got a {type(rows).__name__}.")
    return rows, labels


def _get_entry(batch: Mapping[Any, Any], names: tuple[str, ...]) -> Any:
    """Return the entry of a batch under the first of ``names`` that it has, in any case of letters, or None."""
    known = {key.casefold(): key for key in reversed(list(batch)) if isinstance(key, str)}
    return next((batch[name if name in batch else known[name]] for name in names if name in known), None)


def _as_rows(rows: Tensor | np.ndarray, number: int) -> Tensor:
    """Return rows as a floating-point tensor (n, ...) on the CPU."""
    try:
        x = torch.as_tensor(_make_writable(rows))
    except TypeError as error:
        raise DataError(f"rows of batch {number} must be floats, got {rows.dtype}. Encode raw features.") from error
    if not x.dtype.is_floating_point:
        raise DataError(f"rows of batch {number} must be floats, got {x.dtype}. Call rows.float(), or encode raw features.")
    if x.dim() < 2:
        raise DataError(f"batch {number} must have the shape (n, ...), got {tuple(x.shape)}. Wrap single rows in a DataLoader.")
    return x.detach().cpu()


def _as_labels(labels: Any, number: int) -> Tensor:
    """Return labels as class indices (n,) int64 on the CPU."""
    try:
        y = torch.as_tensor(_make_writable(labels)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"labels of batch {number} must be class indices, and are no numbers ({error}).") from error
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() != 1:
        raise DataError(f"labels of batch {number} must have the shape (n,), got {tuple(y.shape)}. Give one class index a row.")
    if y.dtype.is_floating_point and not bool((y == y.round()).all()):
        raise DataError(f"labels of batch {number} must be class indices, and are no whole numbers.")
    return y.to(torch.int64)


def _make_writable(values: Any) -> Any:
    """Copy arrays that are read-only, such as those inside a DataFrame, because PyTorch warns of them."""
    if isinstance(values, pd.Series | pd.DataFrame):
        values = values.to_numpy()
    return np.require(values, requirements="W") if isinstance(values, np.ndarray) else values
