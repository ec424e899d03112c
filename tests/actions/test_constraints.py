"""Constraints of an action set, each against the rule as an independent check writes it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cfptq.actions import (
    ActionSet,
    AtMost,
    Changes,
    Computed,
    Implies,
    Is,
    Linked,
    Ordered,
    SpecialCodes,
    Stays,
    StepLimit,
    Thermometer,
    Transitions,
    Was,
    propose_constraints,
)
from cfptq.errors import ActionSetError

RULES = {
    "step": StepLimit("hours", up=6, down=1),
    "linked": Linked("tenure", {"age": 1}),
    "switch": Implies(Is("job", "clerk"), Stays("hours")),
    "ordered": Ordered("late_60", "late_30"),
    "most": AtMost(1, ["hours", "late_30"]),
    "steps": Transitions("job", {"clerk": ["teacher"]}),
    "codes": SpecialCodes("months", (-7, -8)),
}


def draw_people(rows=60):
    g = np.random.default_rng(0)
    late = g.integers(1, 8, rows)
    return pd.DataFrame(
        {
            "age": g.integers(20, 60, rows),
            "tenure": g.integers(0, 20, rows),
            "hours": g.integers(5, 60, rows),
            "job": g.choice(["clerk", "cook", "teacher"], rows),
            "late_60": g.integers(0, late + 1),
            "late_30": late,
            "months": np.where(g.random(rows) < 0.3, -7, g.integers(0, 80, rows)),
        }
    )


PEOPLE = draw_people()
NUMBERS = ["age", "tenure", "hours", "late_60", "late_30", "months"]
ENCODER = ColumnTransformer([("n", StandardScaler(), NUMBERS), ("c", OneHotEncoder(sparse_output=False), ["job"])]).fit(PEOPLE)

HOLDS = {
    "step": lambda b, a: (a.hours <= b.hours + 6) & (a.hours >= b.hours - 1),
    "linked": lambda b, a: a.age - b.age == a.tenure - b.tenure,
    "switch": lambda b, a: (a.job != "clerk") | (a.hours == b.hours),
    "ordered": lambda b, a: a.late_60 <= a.late_30,
    "most": lambda b, a: (a.hours == b.hours) | (a.late_30 == b.late_30),
    "steps": lambda b, a: (a.job == b.job) | ((b.job == "clerk") & (a.job == "teacher")),
    "codes": lambda b, a: np.where(b.months < 0, a.months == b.months, a.months >= 0).astype(bool),
}


@settings(max_examples=25, deadline=None)
@given(names=st.sets(st.sampled_from(sorted(RULES)), min_size=1), seed=st.integers(0, 1000), most=st.sampled_from([None, 1, 2]))
def test_projection_keeps_every_constraint_and_changes_nothing_when_repeated(names, seed, most):
    rules = [RULES[name] for name in sorted(names)]
    action_set = ActionSet.from_frame(PEOPLE, immutable=["age"], max_changes=most, constraints=rules).encoded_by(ENCODER)
    x = action_set.encode(PEOPLE)
    delta = action_set.project(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
    after = action_set.decode(action_set.apply(x, delta))
    for name in names:
        assert HOLDS[name](PEOPLE, after).all(), name
    assert torch.equal(action_set.project(x, delta), delta)
    assert not len(action_set.validate(after, before=PEOPLE))
    if most is not None:
        counted = [name for name in PEOPLE if name != "age"]
        assert ((after[counted] != PEOPLE[counted]).sum(axis=1) <= most).all()


def test_consequences_cost_nothing_unless_they_count():
    for counts in (False, True):
        rules = [Linked("tenure", {"age": 1}, counts=counts)]
        action_set = ActionSet.from_frame(PEOPLE, immutable=["age"], constraints=rules).encoded_by(ENCODER)
        x = action_set.encode(PEOPLE)
        alone = torch.zeros_like(x)
        alone[:, action_set["tenure"].column] = 0.5
        delta = action_set.project(x, alone)
        own = (delta * action_set.column_weights)[:, action_set["tenure"].column].abs()
        assert (delta[:, action_set["age"].column] != 0).any()
        assert torch.allclose(action_set.cost(x, delta), own) is not counts


def test_an_action_whose_consequence_leaves_the_bounds_is_not_taken():
    rules = [Linked("tenure", {"age": 1})]
    action_set = ActionSet.from_frame(PEOPLE, bounds={"age": (None, 40)}, constraints=rules).encoded_by(ENCODER)
    x = action_set.encode(PEOPLE)
    delta = action_set.project(x, torch.ones_like(x))
    assert (action_set.decode(action_set.apply(x, delta)).age <= np.maximum(PEOPLE.age, 40)).all()


def test_people_who_break_an_order_keep_its_features_and_are_listed():
    people = PEOPLE.assign(late_60=PEOPLE.late_30 + 1)
    action_set = ActionSet.from_frame(PEOPLE, constraints=[RULES["ordered"]]).encoded_by(ENCODER)
    x = action_set.encode(people)
    after = action_set.decode(action_set.apply(x, action_set.project(x, torch.randn_like(x))))
    pd.testing.assert_frame_equal(after[["late_60", "late_30"]], people[["late_60", "late_30"]], check_dtype=False)
    assert set(action_set.validate(people).row) == set(range(len(people)))


def test_constraints_survive_a_file(tmp_path):
    rules = [
        *RULES.values(),
        Implies(Changes("job", to="teacher"), Changes("age", by=4)),
        Implies(Was("age", (50, None)), Stays("months")),
    ]
    action_set = ActionSet.from_frame(PEOPLE, constraints=rules)
    action_set.save(tmp_path / "actions.yaml")
    again = ActionSet.load(tmp_path / "actions.yaml")
    assert again == action_set
    assert list(again.constraints) == rules


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([StepLimit("hour", up=1)], "there is no feature 'hour'"),
        ([Transitions("job", {"clark": ["cook"]})], "job has no level 'clark'"),
        ([Computed("age", "tenure + 1"), Linked("hours", {"age": 1})], "age follows from two"),
        ([Linked("tenure", {"age": 1}), Computed("tenure", "age - 20")], "follow from each other"),
    ],
)
def test_constraints_that_do_not_fit_are_refused_at_once(rules, message):
    with pytest.raises(ActionSetError, match=message):
        ActionSet.from_frame(PEOPLE, constraints=rules)


@pytest.mark.parametrize("formula", ["__import__('os')", "tenure ** 9", "tenure.real", "f(age)", "'a'", "tenure if 1 else 2"])
def test_formulas_are_arithmetic_only(formula):
    with pytest.raises(ActionSetError, match="formula must be"):
        Computed("hours", formula)


def test_levels_that_can_be_reached_from_a_level_are_read_as_transitions():
    action_set = ActionSet.from_frame(PEOPLE, reachable={"job": {"clerk": ["teacher"]}})
    assert action_set.constraints == (Transitions("job", {"clerk": ["teacher"]}),)


def test_constraints_that_the_data_suggest_are_proposed_and_not_added():
    g = np.random.default_rng(0)
    people = PEOPLE.assign(card=g.integers(0, 900, 60), loan=g.integers(0, 900, 60), share_a=g.random(60))
    people = people.assign(debt=people.card + people.loan, share_b=1 - people.share_a)
    people = people.assign(over_20=(people.age > 30).astype(int), over_50=(people.age > 50).astype(int))
    table = propose_constraints(people)
    proposed = set(table.constraint)
    assert {Computed("debt", "card + loan"), Computed("share_b", "1 - share_a"), SpecialCodes("months", (-7,))} <= proposed
    assert {Thermometer(("over_20", "over_50")), Ordered("late_60", "late_30")} <= proposed
    for constraint in table.constraint:
        assert not len(ActionSet.from_frame(people, constraints=[constraint]).validate(people)), constraint
    assert ActionSet.from_frame(people).constraints == ()
