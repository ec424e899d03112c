"""The audit of a real action set: raw features in, advice in raw features, everything through the fitted encoder."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from cfptq.actions import ActionSet
from cfptq.auditing import Protocol, reference_recourse, run_audit
from cfptq.errors import CfptqError, DataWarning
from cfptq.network.predictor import as_predictor
from cfptq.recourse import solve


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": draw.integers(18, 80, 300),
            "hours": draw.integers(1, 80, 300),
            "income": draw.normal(50.0, 15.0, 300).round(2),
            "job": draw.choice(["clerk", "driver", "nurse"], 300),
        }
    )


@pytest.fixture(scope="module")
def action_set(people: pd.DataFrame) -> ActionSet:
    numbers = ["age", "hours", "income"]
    encoder = ColumnTransformer([("n", StandardScaler(), numbers), ("c", OneHotEncoder(sparse_output=False), ["job"])]).fit(people)
    return ActionSet.from_frame(people, immutable=["age"], integer=["hours"], max_changes=2, favourable=1).encoded_by(encoder)


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """A small network and the same network with its weights rounded to four bits."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        f, f_q = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    f_q.load_state_dict(f.state_dict())
    with torch.no_grad():
        for parameter in f_q.parameters():
            if parameter.dim() == 2:
                step = parameter.abs().amax(dim=1, keepdim=True) / 7
                parameter.copy_((parameter / step).round() * step)
    return f, f_q


def test_advice_issued_in_raw_features_fares_as_the_same_recourse_in_columns(
    people: pd.DataFrame, action_set: ActionSet, models: tuple[nn.Module, nn.Module]
) -> None:
    f, f_q = models
    rows = action_set.encode(people)
    teacher = reference_recourse(as_predictor(f, example=rows), rows, action_set, 1, Protocol(resamples=50))
    sent = teacher.minimal["0.55"]
    letters = people.astype(object).where(pd.Series(False, index=people.index), other=np.nan)
    words = action_set.decode(sent.points[sent.found])
    given = teacher.people[sent.found].numpy()
    letters.iloc[given] = words[letters.columns].to_numpy(dtype=object)
    for column in ("age", "hours", "income"):
        letters[column] = letters[column].astype(float)
    report = run_audit(f, f_q, people, action_set, issued=letters, groups={"job": people["job"]}, protocol=Protocol(resamples=50))
    assert report.issued is not None
    assert report.issued.promised == report.issued.kept_before == len(given)
    assert report.issued.validity_drop == pytest.approx(report.validity_drop_at["0.55"])
    assert set(report.issued.broken) <= set(given.tolist())
    assert set(report.groups["job"].groups) == {"clerk", "driver", "nurse"}
    assert "clerk" in str(report)


def test_advice_with_an_unknown_category_is_refused(
    people: pd.DataFrame, action_set: ActionSet, models: tuple[nn.Module, nn.Module]
) -> None:
    f, f_q = models
    with pytest.raises(CfptqError, match="pilot"):
        run_audit(f, f_q, people, action_set, issued=people.assign(job="pilot"))


def test_the_report_says_how_people_were_read(people: pd.DataFrame, action_set: ActionSet, models: tuple[nn.Module, nn.Module]) -> None:
    f, f_q = models
    quick = Protocol(max_people=20, resamples=20)
    plain = run_audit(f, f_q, people, action_set, protocol=quick, progress=False)
    assert plain.remarks == ()
    assert plain.to_dict()["remarks"] == []
    with pytest.warns(DataWarning, match="income: 300 of 300 rows lie outside"):
        report = run_audit(f, f_q, people.assign(income=people["income"] * 100), action_set, protocol=quick, progress=False)
    assert [(remark.column, remark.kind, remark.count) for remark in report.remarks] == [("income", "other range", 300)]
    assert report.notes[-1].startswith("income: 300 of 300 rows")
    assert "Check the unit" in str(report).replace("\n", " ")
    assert report.to_dict()["remarks"][0]["column"] == "income"
    columns = action_set.encode(people)
    columns[:100, 3:] = 0
    with pytest.raises(CfptqError, match="job: exactly one of columns"):
        run_audit(f, f_q, columns, action_set, protocol=quick, progress=False)
    columns = action_set.encode(people)
    columns[:, 2] *= 100
    assert [remark.column for remark in run_audit(f, f_q, columns, action_set, protocol=quick, progress=False).remarks] == ["income"]


def test_sparse_people_are_refused_as_such(action_set: ActionSet, people: pd.DataFrame, models: tuple[nn.Module, nn.Module]) -> None:
    columns = action_set.encode(people)
    for rows in (scipy.sparse.csr_matrix(columns.numpy()), columns.to_sparse()):
        with pytest.raises(CfptqError, match="people must be dense, got sparse rows"):
            run_audit(*models, rows, action_set)


def test_advice_that_was_kept_in_float32_is_the_same_advice(
    people: pd.DataFrame, action_set: ActionSet, models: tuple[nn.Module, nn.Module]
) -> None:
    f, f_q = models
    rows = action_set.encode(people)
    found = solve(f, rows, action_set, target=1, progress=False)
    sent = found.decode(action_set)
    quick = Protocol(max_people=0, resamples=20)
    one, other = (
        run_audit(f, f_q, people, action_set, issued=letters, protocol=quick, progress=False).issued
        for letters in (sent, sent.astype({"income": "float32"}))
    )
    assert one is not None and other is not None
    assert one.promised == int((found.delta != 0).any(1).sum())
    assert (one.promised, one.kept, one.refused, one.broken) == (other.promised, other.kept, other.refused, other.broken)
