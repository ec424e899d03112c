"""Assertions about recourse, and a small action set and classifier, for your own tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from cfptq.actions import ActionSet, ActionSpace
from cfptq.api import audit
from cfptq.auditing import AuditReport, Protocol
from cfptq.auditing.gate import check_limits
from cfptq.errors import ConfigurationError, DataError
from cfptq.models import MLP
from cfptq.network.predictor import Model

__all__ = ["assert_recourse_preserved", "random_classifier", "small_action_set", "small_people"]

#: Rows that the statistics of the small action set are computed from.
REFERENCE_ROWS = 500


def assert_recourse_preserved(
    f: Model,
    f_q: Model,
    people: pd.DataFrame | Tensor,
    action_set: ActionSpace,
    *,
    max_vd: float | None = None,
    max_disagreement: float | None = None,
    max_crg: float | None = None,
    max_drift: float | None = None,
    max_group_gap: float | None = None,
    level: float | None = None,
    **settings: Any,
) -> AuditReport:
    """Assert that replacing one model by another keeps people's recourse within limits.

    The limits are judged as ``cfptq.AuditReport.gate`` judges them. An undefined value does not hold, for example the Validity Drop
    of people whom nobody rejects.

    Args:
        f: Full-precision model, as a module, an ONNX file, a function or a predictor.
        f_q: Quantized model, in any of the same forms.
        people: Everyone, accepted and rejected. A DataFrame of raw features, or columns (N, ...).
        action_set: What people can change.
        max_vd: Largest Validity Drop allowed, a share within [0, 1]. None sets no limit.
        max_disagreement: Largest boundary disagreement allowed, a share within [0, 1]. None sets no limit.
        max_crg: Largest absolute recourse gap allowed, a share within [0, 1]. None sets no limit.
        max_drift: Largest absolute drift of the favourable rate allowed, a share within [0, 1]. None sets no limit.
        max_group_gap: Largest gap between groups allowed, a share within [0, 1]. It needs ``groups``. None sets no limit.
        level: Confidence level at which the farther ends of the intervals are judged. None judges the estimates.
        settings: Further arguments of ``cfptq.audit``, such as ``issued``, ``target``, ``threshold``, ``protocol`` and ``seed``.

    Returns:
        The report of the audit.

    Raises:
        AssertionError: A limit is broken. The message holds the outcome of each limit.
        ConfigurationError: No limit is given, or a limit is outside [0, 1].
        CfptqError: The audit cannot run, see ``cfptq.audit``.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test.
    limits = {
        "max_vd": max_vd,
        "max_drift": max_drift,
        "max_disagreement": max_disagreement,
        "max_crg": max_crg,
        "max_group_gap": max_group_gap,
    }
    if all(limit is None for limit in limits.values()):
        raise ConfigurationError("At least one limit must be given, got none. Give for example max_disagreement=0.02 and max_drift=0.005.")
    check_limits(list(limits.items()), level)
    if level is not None:
        settings["protocol"] = replace(settings.get("protocol") or Protocol(), level=level)
    report = audit(f, f_q, people, action_set, **{"progress": False, **settings})
    gate = report.gate(**limits, level=level)
    if not gate:
        raise AssertionError(str(gate))
    return report


def small_people(count: int = 200, *, seed: int = 0) -> pd.DataFrame:
    """Generate people with the raw features of ``small_action_set``.

    Args:
        count: Number of people.
        seed: Seed of the draws.

    Returns:
        A DataFrame with the columns age (years, integer), income and debt (thousands), and job (three levels).
    """
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": draw.integers(18, 80, count),
            "income": draw.lognormal(3.4, 0.4, count).round(2),
            "debt": draw.exponential(8.0, count).round(2),
            "job": draw.choice(["clerk", "nurse", "driver"], count),
        }
    )


def small_action_set() -> ActionSet:
    """Build an encoded action set of four features and six columns, with an immutable age and class 1 as favourable.

    Its ``encode`` converts ``small_people`` into the columns of a classifier.
    """
    people = small_people(REFERENCE_ROWS)
    parts = [("numbers", StandardScaler(), ["age", "income", "debt"]), ("job", OneHotEncoder(sparse_output=False), ["job"])]
    encoder = ColumnTransformer(parts).fit(people)
    action_set = ActionSet.from_frame(people, immutable=["age"], bounds={"income": (0, None), "debt": (0, None)}, favourable=1)
    return action_set.encoded_by(encoder)


def random_classifier(rows: Tensor, *, hidden: tuple[int, ...] = (16,), favourable_rate: float = 0.5, seed: int = 0) -> nn.Module:
    """Build a binary classifier with random weights that gives class 1 to a chosen share of ``rows``.

    Args:
        rows: Columns of the people it is for, (N, d) float32.
        hidden: Neurons of each hidden layer.
        favourable_rate: Share of ``rows`` that get class 1, within (0, 1), met as closely as N rows allow.
        seed: Seed of the weights.

    Returns:
        A module in eval mode that maps (N, d) to two logits.

    Raises:
        DataError: ``rows`` is not (N, d), or ``favourable_rate`` is outside (0, 1).
    """
    if rows.dim() != 2 or len(rows) == 0:
        raise DataError(f"rows must have shape (N, d) with N > 0, got {tuple(rows.shape)}. Encode people first.")
    if not 0 < favourable_rate < 1:
        raise DataError(f"favourable_rate must be above 0 and below 1, got {favourable_rate}.")
    model = MLP(rows.shape[1], 2, hidden=hidden, seed=seed).eval()
    with torch.no_grad():
        logits = model(rows)
        model.head.bias[1] -= torch.quantile(logits[:, 1] - logits[:, 0], 1 - favourable_rate)
    return model
