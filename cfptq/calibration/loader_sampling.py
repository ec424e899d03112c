"""A bounded, seeded sample of a loader's rows, the same whatever the size of its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.errors import DataError, name_rows
from cfptq.io.progress import track
from cfptq.network.state import preserved_state

#: Names under which a batch that is a mapping may hold its rows and its labels, tried in this order.
ROW_NAMES = ("x", "input", "inputs", "features", "columns", "data", "image", "images", "pixel_values")
LABEL_NAMES = ("y", "label", "labels", "target", "targets")

Encode = Callable[[pd.DataFrame], Tensor]


def draw_rows(
    loader: Iterable[Any], *, max_rows: int = 4096, seed: int = 0, encode: Encode | None = None, progress: bool = True
) -> tuple[Tensor, Tensor | None]:
    """At most ``max_rows`` rows of a loader, each equally likely, in the loader's order.

    Every row of the stream gets a random key and the smallest ``max_rows`` keys stay. Keys are drawn one a row in the order of the
    stream, so the same rows are kept however they are batched, and memory holds ``2 * max_rows`` rows and a batch, however long the
    loader. The loader is read to its end, once; global random states are left as they were before it was read.

    Args:
        loader: an iterable of batches, or one table. A batch is a float tensor or array (n, ...), a DataFrame (with ``encode``), a
            pair (rows, labels), or a mapping with one of the names in :data:`ROW_NAMES` and perhaps one of :data:`LABEL_NAMES`.
        max_rows: most rows kept.
        seed: of the keys.
        encode: turns a DataFrame batch into columns, such as ``action_set.encode``.
        progress: draw a bar if it takes long and standard error is a terminal.

    Returns:
        Rows (n, ...) float32, and labels (n,) int64, or ``None`` where the loader gives none.

    Raises:
        DataError: an empty loader, NaN or infinity (rows are named), rows that are no floats, a width that changes, labels that are
            no integers or do not fit the rows.
    """
    if max_rows < 1:
        raise DataError(f"max_rows is {max_rows}; it must be at least 1")
    reservoir = _Reservoir(max_rows, seed)
    with preserved_state():
        for number, batch in enumerate(track(_batches(loader), "drawing rows", total=_length(loader), enabled=progress)):
            rows, labels = _split(batch, number, encode)
            reservoir.offer(_as_rows(rows, number), None if labels is None else _as_labels(labels, number), number)
    return reservoir.contents()


class _Reservoir:
    """The rows with the smallest random keys so far."""

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
        if len(rows) == 0:
            return
        self._compare(rows, labels, number)
        keys = self.generator.random(len(rows))
        taken = np.flatnonzero(keys < self.limit)
        # A large batch is taken in pieces so that memory stays bounded.
        for piece in np.array_split(taken, max(1, -(-len(taken) // self.capacity))):
            piece = piece[keys[piece] < self.limit]
            if len(piece) == 0:
                continue
            index = torch.from_numpy(piece)
            # Indexing copies: nothing of the loader's own buffers is kept.
            self.parts.append((keys[piece], self.seen + piece, rows[index].to(torch.float32), None if labels is None else labels[index]))
            self.pending += len(piece)
            if self.pending > 2 * self.capacity:
                self._settle()
        self.seen += len(rows)

    def contents(self) -> tuple[Tensor, Tensor | None]:
        if self.seen == 0:
            raise DataError("the loader gave no rows; a generator can be read only once: give a fresh one, or a list of batches")
        self._settle()
        _, positions, rows, labels = self.parts[0]
        order = torch.from_numpy(np.argsort(positions))
        return rows[order], None if labels is None else labels[order]

    def _settle(self) -> None:
        keys, positions = (np.concatenate([part[i] for part in self.parts]) for i in (0, 1))
        rows = torch.cat([part[2] for part in self.parts])
        given = [part[3] for part in self.parts if part[3] is not None]
        labels = torch.cat(given) if given else None
        if len(keys) > self.capacity:
            # Ties in the key (they do not happen in practice) go to the earlier row.
            kept = np.lexsort((positions, keys))[: self.capacity]
            index = torch.from_numpy(kept)
            keys, positions, rows, labels = keys[kept], positions[kept], rows[index], None if labels is None else labels[index]
        if len(keys) == self.capacity:
            self.limit = float(keys.max())
        self.parts = [(keys, positions, rows, labels)]
        self.pending = len(keys)

    def _compare(self, rows: Tensor, labels: Tensor | None, number: int) -> None:
        """Everything that a batch must share with those before it, and what no batch may hold."""
        if self.shape is None:
            self.shape, self.labelled = tuple(rows.shape[1:]), labels is not None
        if tuple(rows.shape[1:]) != self.shape:
            raise DataError(
                f"batch {number} has rows of shape {tuple(rows.shape[1:])}, the first one {self.shape}; all rows need the same columns"
            )
        if (labels is not None) != self.labelled:
            has, had = ("has labels", "had none") if labels is not None else ("has no labels", "had some")
            raise DataError(f"batch {number} {has} and the first one {had}; give labels with every batch or with none")
        if labels is not None and len(labels) != len(rows):
            raise DataError(f"batch {number} has {len(rows)} rows and {len(labels)} labels; give one label a row")
        if not bool(torch.isfinite(rows.sum())):
            bad = (~torch.isfinite(rows).flatten(1).all(1)).nonzero()[:, 0]
            if len(bad):
                named = name_rows((bad + self.seen).tolist())
                raise DataError(f"rows {named} of the loader (batch {number}) hold NaN or infinity; impute or drop them first")


def _batches(loader: Iterable[Any]) -> Iterable[Any]:
    if isinstance(loader, Tensor | np.ndarray | pd.DataFrame | Mapping) or _is_pair(loader):
        return (loader,)
    if isinstance(loader, str | bytes) or not isinstance(loader, Iterable):
        raise DataError(f"a {type(loader).__name__} is no loader; give an iterable of batches, a tensor, an array or a DataFrame")
    return loader


def _is_pair(loader: Any) -> bool:
    """(rows, labels) for a whole table, as against a tuple of two batches."""
    if not (isinstance(loader, tuple) and len(loader) == 2):
        return False
    rows, labels = loader
    table = Tensor | np.ndarray | pd.DataFrame | pd.Series
    return isinstance(rows, table) and isinstance(labels, table) and rows.ndim >= 2 and labels.ndim == 1


def _length(loader: Any) -> int | None:
    try:
        return len(loader) if not isinstance(loader, Tensor | np.ndarray | pd.DataFrame | Mapping) else 1
    except TypeError:
        return None


def _split(batch: Any, number: int, encode: Encode | None) -> tuple[Tensor | np.ndarray, Any]:
    """Rows and labels of one batch, rows as columns."""
    labels = None
    rows = batch
    if isinstance(batch, Mapping):
        row_name = next((name for name in ROW_NAMES if name in batch), None)
        if row_name is None:
            raise DataError(f"batch {number} is a mapping with {sorted(map(str, batch))}; call its rows one of {', '.join(ROW_NAMES)}")
        rows, labels = batch[row_name], next((batch[name] for name in LABEL_NAMES if name in batch), None)
    elif isinstance(batch, tuple | list):
        if len(batch) not in (1, 2):
            raise DataError(f"batch {number} has {len(batch)} parts; give rows, or a pair (rows, labels)")
        rows, labels = batch[0], batch[1] if len(batch) == 2 else None
    if isinstance(rows, pd.DataFrame):
        if encode is None:
            raise DataError(f"batch {number} is a DataFrame of raw features; give encode=action_set.encode, or columns as a tensor")
        rows = encode(rows)
    if not isinstance(rows, Tensor | np.ndarray):
        raise DataError(f"batch {number} holds its rows as a {type(rows).__name__}; give a tensor, an array or a DataFrame")
    return rows, labels


def _as_rows(rows: Tensor | np.ndarray, number: int) -> Tensor:
    try:
        x = torch.as_tensor(_writable(rows))
    except TypeError as error:
        raise DataError(f"batch {number} is an array of {rows.dtype}; give floats") from error
    if not x.dtype.is_floating_point:
        raise DataError(f"batch {number} holds {x.dtype}; give floats as the model takes them (rows.float(); encode raw features)")
    if x.dim() < 2:
        raise DataError(f"batch {number} has shape {tuple(x.shape)}; give batches (n, d): wrap a dataset of single rows in a DataLoader")
    return x.detach().cpu()


def _as_labels(labels: Any, number: int) -> Tensor:
    try:
        y = torch.as_tensor(_writable(labels)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"batch {number} has labels that are no numbers ({error}); give class indices") from error
    if y.dim() == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dim() != 1:
        raise DataError(f"batch {number} has labels of shape {tuple(y.shape)}; give one class index a row, (n,)")
    if y.dtype.is_floating_point and not bool((y == y.round()).all()):
        raise DataError(f"batch {number} has labels that are no whole numbers; give class indices")
    return y.to(torch.int64)


def _writable(values: Any) -> Any:
    """PyTorch warns of arrays that it could not write to, such as those inside a DataFrame: those are copied."""
    if isinstance(values, pd.Series | pd.DataFrame):
        values = values.to_numpy()
    return np.require(values, requirements="W") if isinstance(values, np.ndarray) else values
