"""Constraints in every search for recourse, in proofs, in letters and in calibration."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Implies, Is, Linked, Stays, StepLimit
from cfptq.actions.forbidden_changes import find_forbidden_changes
from cfptq.network import as_predictor
from cfptq.recourse import Status, find_single_feature_actions, prove_infeasibility, solve, solve_diverse

RULES = [StepLimit("hours", up=6, down=1), Linked("tenure", {"age": 1}), Implies(Is("job", "clerk"), Stays("hours"))]
G = np.random.default_rng(0)
PEOPLE = pd.DataFrame(
    {
        "age": G.integers(20, 60, 80),
        "tenure": G.integers(0, 20, 80),
        "hours": G.integers(5, 60, 80),
        "job": G.choice(["clerk", "cook", "teacher"], 80),
    }
)
ENCODER = ColumnTransformer([("n", StandardScaler(), ["age", "tenure", "hours"]), ("c", OneHotEncoder(sparse_output=False), ["job"])])
ACTIONS = ActionSet.from_frame(PEOPLE, immutable=["age"], max_changes=2, favourable=1, constraints=RULES).encoded_by(ENCODER.fit(PEOPLE))
X = ACTIONS.encode(PEOPLE)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    score = X[:, 1] + X[:, 2] + X[:, 5]
    labels = (score > score.median()).long()
    optimizer = torch.optim.Adam(network.parameters(), 2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X), labels).backward()
        optimizer.step()
    return network.eval()


def require_feasible(batch, people):
    after = ACTIONS.decode(batch.points)
    assert batch.found.any()
    found = batch.found.numpy()
    assert not len(ACTIONS.validate(after[found], before=people[found]))
    step = after.hours - people.hours
    assert ((step <= 6) & (step >= -1))[found].all()
    assert (after.age - people.age == after.tenure - people.tenure)[found].all()
    assert ((after.job != "clerk") | (step == 0))[found].all()


@pytest.fixture(scope="module")
def refused(model):
    return (model(X).argmax(1) == 0).nonzero()[:, 0]


@pytest.mark.parametrize("method", ["minimal-cost", "projected-gradient", "gradient-free", cfptq.recourse.MinimalCost(confidence=0.6)])
def test_every_search_keeps_the_constraints(model, refused, method):
    batch = solve(model, X[refused], ACTIONS, target=1, method=method, progress=False)
    require_feasible(batch, PEOPLE.iloc[refused.numpy()].reset_index(drop=True))


def test_diverse_actions_keep_the_constraints(model, refused):
    people = PEOPLE.iloc[refused.numpy()].reset_index(drop=True)
    for batch in solve_diverse(model, X[refused], ACTIONS, target=1, actions=2, progress=False):
        require_feasible(batch, people)


def test_single_feature_actions_keep_the_constraints(model, refused):
    target = torch.ones(len(refused), dtype=torch.int64)
    batch, row = find_single_feature_actions(as_predictor(model, example=X), X[refused], ACTIONS, target)
    require_feasible(batch, PEOPLE.iloc[refused[row].numpy()].reset_index(drop=True))


def test_linear_constraints_leave_proofs_of_infeasibility(model, refused):
    unreachable = nn.Sequential(nn.Linear(6, 2))
    with torch.no_grad():
        unreachable[0].weight.zero_()
        unreachable[0].bias.copy_(torch.tensor([3.0, -2.0]))
    batch = solve(unreachable, X[refused], ACTIONS, target=1, progress=False)
    assert set(prove_infeasibility(unreachable, batch, ACTIONS).statuses) == {Status.IMMUTABLE}


def test_letters_name_the_constraint_that_they_break_and_free_consequences_do_not_count():
    start = pd.DataFrame({"age": [30, 30, 30], "tenure": [5, 5, 5], "hours": [40, 40, 40], "job": ["cook"] * 3})
    told = pd.DataFrame({"age": [32, 30, 32], "tenure": [7, 7, 7], "hours": [45, 40, 47], "job": ["cook"] * 3})
    linked, step = RULES[1].describe(), RULES[0].describe()
    assert find_forbidden_changes(ACTIONS, ACTIONS.encode(start), ACTIONS.encode(told)) == [(), (linked,), (step,)]


def test_calibration_with_constraints_gives_a_network(model):
    result = cfptq.calibrate(model, [(X, (X[:, 1] > 0).long())], ACTIONS, budget=8.0, progress=False)
    assert result.network is not None
