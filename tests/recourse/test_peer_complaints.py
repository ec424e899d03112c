"""Complaints of users of other recourse libraries, each covered by one test (issue numbers are those libraries')."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from cfptq.actions import ActionSet, Categorical, Continuous
from cfptq.errors import ActionSetError, DataError
from cfptq.models import MLP
from cfptq.network import as_predictor
from cfptq.recourse import RecourseBatch, opposite_class, runner_up_class, solve

LEVELS = ("clerk", "farmer", "manager", "nurse")


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    count = 400
    return pd.DataFrame(
        {
            "age": rng.integers(18, 70, count), "income": np.round(rng.gamma(4, 10, count), 1), "months": rng.integers(6, 61, count),
            "job": rng.choice(LEVELS, count), "sex": rng.choice(["f", "m"], count),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def action_set(people: pd.DataFrame) -> ActionSet:
    encoder = ColumnTransformer(
        [("n", StandardScaler(), ["age", "income", "months"]), ("c", OneHotEncoder(sparse_output=False), ["job", "sex"])]
    ).fit(people)
    declared = ActionSet.from_frame(people, immutable=["age", "sex"], bounds={"months": (6, 60)}, max_changes=2, favourable=1)
    return declared.encoded_by(encoder)


@pytest.fixture(scope="module")
def model(action_set: ActionSet, people: pd.DataFrame) -> nn.Module:
    network = MLP(action_set.encode(people).shape[1], hidden=(16, 16), seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
        logits = network(action_set.encode(people))
        network.head.bias[0] += (logits[:, 1] - logits[:, 0]).quantile(0.6)
    return network


@pytest.fixture(scope="module")
def batch(model: nn.Module, action_set: ActionSet, people: pd.DataFrame) -> RecourseBatch:
    result = solve(model, action_set.encode(people), action_set, target=1)
    assert int((result.found & (result.cost > 0)).sum()) > 50
    return result


def test_hundreds_of_people_take_seconds(model: nn.Module, action_set: ActionSet, people: pd.DataFrame) -> None:
    """DiCE #218, #258, #226: hours for hundreds of rows, or stuck for ever."""
    started = time.process_time()
    solve(model, action_set.encode(people), action_set, target=1)
    assert time.process_time() - started < 20


def test_immutables_and_ranges_hold_in_every_answer(batch: RecourseBatch, action_set: ActionSet, people: pd.DataFrame) -> None:
    """DiCE #355, #441, #260 and CARLA #155: immutables and ranges ignored."""
    after = action_set.decode(batch.points)
    assert (after["age"].to_numpy() == people["age"].to_numpy()).all() and (after["sex"].to_numpy() == people["sex"].to_numpy()).all()
    assert after["months"].between(6, 60).all()
    assert after["income"].between(people["income"].min() - 1e-3, people["income"].max() + 1e-3).all()
    assert len(action_set.validate(after)) == 0


def test_answers_stay_valid_after_decoding_and_encoding_again(batch: RecourseBatch, model: nn.Module, action_set: ActionSet) -> None:
    """DiCE #473: rounding destroys validity."""
    again = action_set.encode(action_set.decode(batch.points))
    with torch.no_grad():
        assert bool((model(again).argmax(1) == 1)[batch.found].all())


def test_whole_numbers_stay_whole_and_within_their_range(batch: RecourseBatch, action_set: ActionSet) -> None:
    """alibi #550, #715: integer truncation leaves the permitted range."""
    months = action_set.decode(batch.points)["months"].to_numpy().astype(float)
    assert (months == np.round(months)).all() and months.min() >= 6 and months.max() <= 60


def test_the_factual_handed_back_is_the_row_that_came_in(batch: RecourseBatch, action_set: ActionSet, people: pd.DataFrame) -> None:
    """DiCE #433: the factual returned differs from the input."""
    assert torch.equal(batch.factual, action_set.encode(people))


def _one_hot_columns() -> tuple[ActionSet, Tensor]:
    generator = torch.Generator().manual_seed(0)
    group = nn.functional.one_hot(torch.randint(0, 5, (120,), generator=generator), 5)
    columns = torch.cat((torch.randn(120, 2, generator=generator), group), 1).float()
    features = [Continuous("a", column=0), Continuous("b", column=1), Categorical("job", columns=(2, 3, 4, 5, 6), levels=tuple("pqrst"))]
    return ActionSet.from_columns(columns, features), columns


def test_columns_that_are_one_hot_already_are_taken_as_they_are() -> None:
    """DiCE #346: pre-encoded one-hot data refused."""
    action_set, columns = _one_hot_columns()
    result = solve(MLP(7, hidden=(16,), seed=1), columns, action_set, target=opposite_class)
    assert result.found.float().mean() > 0.5


def test_categories_of_more_than_two_levels_stay_one_hot() -> None:
    """CARLA #172: categories with more than two levels."""
    action_set, columns = _one_hot_columns()
    result = solve(MLP(7, hidden=(16,), seed=1), columns, action_set, target=opposite_class)
    group = result.points[:, 2:]
    assert bool(((group == 0) | (group == 1)).all()) and bool((group.sum(1) == 1).all())
    assert bool((group != columns[:, 2:]).any()), "nobody changed level, so nothing was shown"


def test_the_number_of_changed_features_has_a_cap(batch: RecourseBatch, action_set: ActionSet) -> None:
    """DiCE #186: no cap on the number of changed features."""
    changed = torch.stack([(batch.delta[:, list(columns)] != 0).any(1) for columns in action_set.feature_columns], 1)
    assert int(changed.sum(1).max()) <= 2


def test_more_than_two_classes_are_no_special_case() -> None:
    """DiCE #273, #464: multi-class."""
    action_set, columns = _one_hot_columns()
    network = MLP(7, classes=4, hidden=(16,), seed=2)
    result = solve(network, columns, action_set, target=runner_up_class)
    with torch.no_grad():
        assert torch.equal(network(result.points).argmax(1)[result.found], result.target[result.found])
    assert result.found.float().mean() > 0.5 and len(result.target.unique()) > 1


def test_the_users_own_threshold_decides_what_counts_as_reached(model: nn.Module, action_set: ActionSet, people: pd.DataFrame) -> None:
    """DiCE #273, #464: the user's own threshold."""
    rows = action_set.encode(people)
    strict = as_predictor(model, example=rows, threshold=0.7)
    result = solve(strict, rows, action_set, target=1)
    with torch.no_grad():
        probability = torch.softmax(model(result.points), 1)[:, 1]
    moved = result.found & (result.cost > 0)
    assert moved.sum() > 20 and float(probability[moved].min()) >= 0.7


def test_every_row_without_recourse_has_a_reason(action_set: ActionSet, people: pd.DataFrame) -> None:
    """DiCE #281: "no counterfactuals found" and no reason."""
    by_age = nn.Linear(action_set.encode(people).shape[1], 2)
    with torch.no_grad():
        by_age.weight.zero_()
        by_age.weight[1, 0] = 1.0
        by_age.bias.zero_()
    result = solve(by_age, action_set.encode(people), action_set, target=1)
    reasons = result.reasons
    lost = (~result.found).nonzero()[:, 0].tolist()
    assert lost and all(reasons[row] for row in lost)


def test_two_runs_give_one_answer(batch: RecourseBatch, model: nn.Module, action_set: ActionSet, people: pd.DataFrame) -> None:
    """DiCE #206: different results per run, whatever the global random state."""
    torch.manual_seed(1234)
    np.random.seed(99)
    again = solve(model, action_set.encode(people), action_set, target=1)
    assert torch.equal(batch.delta, again.delta) and torch.equal(batch.cost, again.cost)


def test_rows_that_make_no_sense_are_refused_by_number(model: nn.Module, action_set: ActionSet, people: pd.DataFrame) -> None:
    """Ill-posed problems end in one clear message, not in a search."""
    rows = action_set.encode(people)
    broken = rows.clone()
    broken[7, 1] = float("nan")
    with pytest.raises(DataError, match="7"):
        solve(model, broken, action_set, target=1)
    torn = rows.clone()
    job = next(feature for feature in action_set.features if len(feature.model_columns) > 1)
    torn[3, list(job.model_columns)] = 0.5
    with pytest.raises(ActionSetError, match=r"\b3\b"):
        solve(model, torn, action_set, target=1)
    with pytest.raises(DataError, match="target"):
        solve(model, rows, action_set, target=2)
    with pytest.raises(ActionSetError):
        action_set.refine("months", bounds=(60, 6))
