"""Exact and minimal-cost recourse under constraints, against enumeration in raw units and a program of the test's own."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from cfptq.actions import (
    ActionSet,
    AtMost,
    Changes,
    Computed,
    Implies,
    Is,
    Linked,
    Ordered,
    Stays,
    StepLimit,
    Thermometer,
    Transitions,
)
from cfptq.errors import DataError
from cfptq.recourse import Exact, MinimalCost, Status, solve

G = np.random.default_rng(0)
SIZE = 60
SECOND = G.integers(0, 5, SIZE)
PEOPLE = pd.DataFrame(
    {
        "first": G.integers(0, SECOND + 1),
        "second": SECOND,
        "third": G.integers(0, 4, SIZE),
        "age": G.integers(30, 34, SIZE),
        "low": (SECOND > 0).astype(int),
        "high": (SECOND > 2).astype(int),
        "job": G.choice(["clerk", "cook", "teacher"], SIZE),
    }
)
NUMBERS = ["first", "second", "third", "age", "low", "high"]
ENCODER = ColumnTransformer([("n", StandardScaler(), NUMBERS), ("c", OneHotEncoder(sparse_output=False), ["job"])]).fit(PEOPLE)

# Each constraint, and what it says of a person before and after as the test reads it.
RULES = {
    "step": (StepLimit("third", up=1, down=1), lambda b, a: abs(a["third"] - b["third"]) <= 1),
    "linked": (Linked("first", {"age": 1}), lambda b, a: True),
    "degree": (Implies(Changes("job", to="teacher"), Changes("age", by=2)), lambda b, a: True),
    "switch": (Implies(Is("job", "cook"), Stays("second")), lambda b, a: a["job"] != "cook" or a["second"] == b["second"]),
    "ordered": (Ordered("first", "second"), lambda b, a: a["first"] <= a["second"]),
    "nested": (Thermometer(["low", "high"]), lambda b, a: a["low"] >= a["high"]),
    "most": (AtMost(1, ["second", "third"]), lambda b, a: a["second"] == b["second"] or a["third"] == b["third"]),
    "steps": (
        Transitions("job", {"clerk": ["teacher"]}),
        lambda b, a: a["job"] == b["job"] or (b["job"], a["job"]) == ("clerk", "teacher"),
    ),
}


def make_model(seed, action_set, hidden):
    torch.manual_seed(seed)
    width = action_set.width
    network = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 2)) if hidden else nn.Sequential(nn.Linear(width, 2))
    with torch.no_grad():
        network[-1].bias[1] -= (network(action_set.encode(PEOPLE)) @ torch.tensor([-1.0, 1.0])).quantile(0.8)
    return network.eval()


def enumerate_costs(model, action_set, names, person, most):
    """Return the least cost of all people that one person may become, infinite if none is accepted."""
    moving = {"linked", "degree"} & set(names)
    options = {name: sorted(PEOPLE[name].unique()) for name in PEOPLE if name != "age" or not moving}
    if not moving:
        options["age"] = [person["age"]]
    if "low" in options and "nested" not in names:
        options["low"], options["high"] = [person["low"]], [person["high"]]
    rows = []
    for values in product(*options.values()):
        after = dict(zip(options, values, strict=True))
        after["age"] = person["age"]
        if "linked" in names:
            after["age"] += after["first"] - person["first"]
        if "degree" in names and after["job"] == "teacher" != person["job"]:
            after["age"] += 2
        groups = [[n] for n in PEOPLE if n not in ("age", "low", "high")] + [["low", "high"]]
        count = sum(any(after[n] != person[n] for n in group) for group in groups)
        if count and (most is None or count <= most) and all(RULES[name][1](person, after) for name in names):
            rows.append(after)
    if not rows:
        return np.inf
    frame = pd.DataFrame(rows)[list(PEOPLE)]
    frame = frame[(frame.age >= 28) & (frame.age <= 36)].reset_index(drop=True)
    x = action_set.encode(frame)
    with torch.no_grad():
        accepted = (model(x) @ torch.tensor([-1.0, 1.0]) > 1e-4).numpy()
    start = action_set.encode(pd.DataFrame([person])[list(PEOPLE)])
    weights = action_set.column_weights.clone()
    costs = ((x - start).abs() * weights).sum(1).numpy()
    return costs[accepted].min() if accepted.any() else np.inf


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=4, deadline=None)
@given(
    names=st.sets(st.sampled_from(sorted(RULES)), min_size=2, max_size=5), seed=st.integers(0, 50), most=st.sampled_from([None, 2]),
    hidden=st.booleans(),
)  # fmt: skip
def test_the_optimum_is_that_of_enumeration(names, seed, most, hidden):
    immutable = ["age"] + ([] if "nested" in names else ["low", "high"])
    action_set = ActionSet.from_frame(
        PEOPLE, immutable=immutable, bounds={"age": (28, 36)}, max_changes=most, constraints=[RULES[name][0] for name in sorted(names)]
    ).encoded_by(ENCODER)
    model = make_model(seed, action_set, hidden)
    people = PEOPLE[(model(action_set.encode(PEOPLE)).argmax(1) == 0).numpy()][:1].reset_index(drop=True)
    wanted = [enumerate_costs(model, action_set, names, person, most) for person in people.to_dict("records")]
    x = action_set.encode(people)
    for method in (Exact(heuristic=MinimalCost()), Exact(max_enumerated=0, heuristic=MinimalCost())):
        batch = solve(model, x, action_set, target=1, method=method, progress=False)
        got = np.where(batch.found.numpy(), batch.cost.numpy(), np.inf)
        np.testing.assert_allclose(got, wanted, rtol=2e-4, err_msg=str(method.max_enumerated))
        assert Status.BOUNDED not in batch.statuses
    quick = solve(model, x, action_set, target=1, progress=False)
    cost = np.where(quick.found.numpy(), quick.cost.numpy(), np.inf)
    assert (cost >= np.array(wanted) * (1 - 2e-4)).all()


def test_a_linear_models_optimum_is_that_of_a_program_in_raw_units():
    g = np.random.default_rng(1)
    upper = g.uniform(2, 9, 80)
    people = pd.DataFrame(
        {"lower": upper * g.uniform(0.1, 0.9, 80), "upper": upper, "income": g.uniform(10, 50, 80), "age": g.uniform(20, 60, 80)}
    )
    rules = [
        StepLimit("income", up=0.3, down=0.2, relative=True),
        Linked("lower", {"age": 2.0}),
        Ordered("lower", "upper"),
        AtMost(1, ["upper", "income"]),
    ]
    action_set = ActionSet.from_frame(people, immutable=["age"], bounds={"age": (10, 70)}, constraints=rules)
    action_set = action_set.encoded_by(ColumnTransformer([("n", StandardScaler(), list(people))]).fit(people))
    x = action_set.encode(people)
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    slope = np.array([0.4, 0.9, 1.1, 0.3])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(np.stack([-slope / 2, slope / 2]), dtype=torch.float32))
        model[0].bias.copy_(torch.tensor([0.3, -0.3]))
    refused = (model(x).argmax(1) == 0).nonzero()[:8, 0]
    batch = solve(model, x[refused], action_set, target=1, method="exact", progress=False)
    scale, mean = people.std(ddof=0).to_numpy(), people.mean().to_numpy()
    weight = action_set.column_weights.double().numpy()
    for row, person in enumerate(people.iloc[refused.numpy()].to_numpy()):
        # Variables: rises and falls of lower, upper and income in raw units, then a switch of upper and one of income.
        rates = np.array([1.0, 1.0, 1.0])
        sign = np.array([1, -1, 1, -1, 1, -1])
        per_unit = np.array([slope[0] / scale[0] + 2 * slope[3] / scale[3], slope[1] / scale[1], slope[2] / scale[2]])
        gain = np.concatenate([sign * np.repeat(per_unit * rates, 2), [0, 0]])
        need = -((slope * (person - mean) / scale).sum() - 0.6) + 1e-5
        lows, highs = people.min().to_numpy(), people.max().to_numpy()
        room = [highs[0] - person[0], person[0] - lows[0], highs[1] - person[1], person[1] - lows[1]]
        room += [min(highs[2] - person[2], 0.3 * person[2]), min(person[2] - lows[2], 0.2 * person[2])]
        price = np.concatenate([np.repeat((weight / scale)[:3], 2), [0, 0]])
        limits = [
            LinearConstraint(gain, need, np.inf),
            LinearConstraint([1, -1, -1, 1, 0, 0, 0, 0], -np.inf, person[1] - person[0]),
            LinearConstraint([2, -2, 0, 0, 0, 0, 0, 0], 10 - person[3], 70 - person[3]),
            LinearConstraint([0, 0, 1, 1, 0, 0, -99, 0], -np.inf, 0),
            LinearConstraint([0, 0, 0, 0, 1, 1, 0, -99], -np.inf, 0),
            LinearConstraint([0, 0, 0, 0, 0, 0, 1, 1], -np.inf, 1),
        ]
        result = milp(price, constraints=limits, bounds=(np.zeros(8), np.array([*room, 1, 1])), integrality=[0] * 6 + [1, 1])
        assert bool(batch.found[row]) == (result.status == 0)
        if result.status == 0:
            assert float(batch.cost[row]) == pytest.approx(result.fun, rel=2e-4)
    assert batch.found.any()


def test_a_constraint_that_is_not_linear_is_refused_with_the_reason():
    g = np.random.default_rng(0)
    people = pd.DataFrame({"debt": g.lognormal(9, 0.6, 60), "income": g.lognormal(10, 0.4, 60)})
    people["ratio"] = people.debt / people.income
    action_set = ActionSet.from_frame(people, constraints=[Computed("ratio", "debt / income")])
    action_set = action_set.encoded_by(ColumnTransformer([("n", StandardScaler(), list(people))]).fit(people))
    x = action_set.encode(people)
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    refused = x[model(x).argmax(1) == 0][:2]
    with pytest.raises(DataError, match=r"Computed \(its formula is not linear\)"):
        solve(model, refused, action_set, target=1, method="exact", progress=False)


def test_consequences_that_count_are_refused_by_exact_search():
    rules = [Linked("first", {"age": 1}, counts=True)]
    action_set = ActionSet.from_frame(PEOPLE, immutable=["age"], constraints=rules).encoded_by(ENCODER)
    model = make_model(0, action_set, hidden=False)
    with pytest.raises(DataError, match="Linked with counts=True"):
        solve(model, action_set.encode(PEOPLE), action_set, target=1, method="exact", progress=False)
