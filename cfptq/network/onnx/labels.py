"""Labels that an ONNX file puts out beside its scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cfptq.network.head import decide
from cfptq.network.onnx.file import OnnxFile

#: Most rows on which labels are compared with decisions.
MAX_COMPARED_ROWS = 2048
#: Share of rows whose label may differ, because two scores are equal within rounding.
MAX_SHARE_OF_TIES = 1e-3


def describe_other_labels(file: OnnxFile, rows: Tensor, logits: Tensor, threshold: float | None) -> str:
    """Return a sentence on a label output that decides otherwise than the scores, or "" where there is none.

    Args:
        file: the file.
        rows: (N, ...) float32 rows that the model is meant for.
        logits: (N, C) class logits of these rows, with the decision threshold taken off.
        threshold: decision threshold on the probability of class 1, or None.
    """
    labels = file.run_labels(rows[:MAX_COMPARED_ROWS])
    if labels is None:
        return ""
    logits = logits[:MAX_COMPARED_ROWS]
    decided = decide(logits).numpy()
    known, codes = np.unique(labels.astype(str), return_inverse=True)
    counts = np.zeros((logits.shape[1], len(known)), dtype=np.int64)
    np.add.at(counts, (decided, codes), 1)
    usual = {int(chosen): int(counts[chosen].argmax()) for chosen in np.unique(decided)}
    differing = int(sum(usual[int(chosen)] != code for chosen, code in zip(decided, codes, strict=True)))
    if len(set(usual.values())) == len(usual) and differing <= MAX_SHARE_OF_TIES * len(labels):
        return ""
    shared = len(labels) - int(counts.max(axis=0).sum())
    hint = "" if logits.shape[1] != 2 or len(known) != 2 else _suggest_threshold(logits, codes, threshold)
    return (
        f"The labels that {file.where} puts out are not the decisions of its scores for {max(differing, shared)} of {len(labels)} rows. "
        f"Figures are about the scores, decided at {0.5 if threshold is None else threshold:g}. Give the threshold that the labels use"
        f" with threshold={hint}."
    )


def _suggest_threshold(logits: Tensor, codes: np.ndarray[tuple[int], np.dtype[np.int64]], threshold: float | None) -> str:
    """Return the threshold that separates the labels, rounded, or "" where none does."""
    odds = (logits[:, 1] - logits[:, 0]).double() + torch.logit(torch.tensor(0.5 if threshold is None else threshold, dtype=torch.float64))
    probability = torch.sigmoid(odds).numpy()
    first, second = probability[codes == 0], probability[codes == 1]
    low, high = (first, second) if np.median(first) < np.median(second) else (second, first)
    return f", about {(low.max() + high.min()) / 2:.2g}" if low.max() <= high.min() else ""
