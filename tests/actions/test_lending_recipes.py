"""The action sets of the lending recipes, and reachml's published set against its rules by enumeration."""

from __future__ import annotations

import importlib.util
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

import cfptq
from cfptq.actions import ActionSet

pytestmark = pytest.mark.filterwarnings("ignore")


def load_recipe(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FICO, BUREAU = load_recipe("fico_challenge_actions"), load_recipe("credit_bureau_actions")


def solve_for(people, action_set):
    x = action_set.encode(people)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[-1].bias[1] -= (model(x) @ torch.tensor([-1.0, 1.0])).median()
    refused = people.iloc[(model(x).argmax(1) == 0).nonzero()[:30, 0].numpy()].reset_index(drop=True)
    batch = cfptq.recourse.solve(model, refused, action_set, target=1, progress=False)
    found = batch.found.numpy()
    return refused[found].reset_index(drop=True), action_set.decode(batch.points[batch.found])


def test_the_challenges_action_set_gives_advice_that_a_lender_would_sign():
    people = FICO.draw_people()
    encoder = ColumnTransformer([("n", StandardScaler(), list(people))]).fit(people)
    before, after = solve_for(people, FICO.build_action_set(people).encoded_by(encoder))
    assert len(before) > 10
    waited = after.MSinceMostRecentDelq - before.MSinceMostRecentDelq
    assert (waited[before.MSinceMostRecentDelq < 0] == 0).all() and waited.between(0, 24).all()
    assert (after.MSinceOldestTradeOpen - before.MSinceOldestTradeOpen == waited).all()
    assert (after.NumTradesWBalance == after.NumRevolvingTradesWBalance + after.NumInstallTradesWBalance).all()
    assert (after.NumSatisfactoryTrades <= after.NumTotalTrades).all() and (after.NumInqLast6Mexcl7days <= after.NumInqLast6M).all()


def test_a_bureau_files_action_set_gives_advice_that_a_lender_would_sign(tmp_path):
    people = BUREAU.draw_people()
    action_set = BUREAU.build_action_set(people).encoded_by(BUREAU.fit_encoder(people))
    action_set.save(tmp_path / "actions.yaml")
    assert ActionSet.load(tmp_path / "actions.yaml") == action_set
    before, after = solve_for(people, action_set)
    assert len(before) > 10
    assert not len(action_set.validate(after, before=before))
    assert (after.debt == after.card_debt + after.loan_debt).all()
    assert np.allclose(after.debt_to_income, after.debt / after.income, rtol=1e-4)
    assert (after.income <= np.minimum(before.income * 1.2, before.most_income) + 0.5).all()
    assert (after.card_debt == before.card_debt)[before.in_hardship_plan].all()
    assert (after.age_months - before.age_months == after.months_employed - before.months_employed).all()
    closed = (after.card_debt == 0) & (before.card_debt > 0)
    assert (after.accounts_with_balance - before.accounts_with_balance)[closed].eq(-1).all()


def may_follow(before, after, names):
    """Tell whether reachml's published rules let a person with ``before`` reach ``after``, by its rules on 0/1 columns."""
    for name in names:
        if after[name] > before[name] and "Avg" not in name and "MostRecent" not in name:
            return False
        if after[name] < before[name] and "Avg" in name:
            return False
        if "TradesWBalance" in name and after[name] != before[name] and after[name.replace("WBalance", "")] != 0:
            return False
    nested = sorted((name for name in names if "_geq_" in name), key=lambda name: (name.split("_geq_")[0], int(name.split("_")[-1])))
    pairs = [(a, b) for a, b in pairwise(nested) if a.split("_geq_")[0] == b.split("_geq_")[0]]
    pairs += [(b, a) for a, b in pairwise(names) if "_leq_" in a]
    if any(after[first] < after[second] for first, second in pairs):
        return False
    if "MostRecentTradeWithinLastYear" in names:
        start, end = (tuple(part[name] for name in names) for part in (before, after))
        return start == end or end in {(0, 0): [(1, 1)], (1, 0): [(1, 1)], (0, 1): [(1, 1)], (1, 1): [(0, 0)]}[start]
    return True


def test_reachable_sets_of_the_published_action_set_are_those_of_its_rules():
    people = FICO.draw_nested_people(200)
    recent = ["MostRecentTradeWithinLastYear", "MostRecentTradeWithinLast2Years"]
    numbers = [name for name in people if name not in recent]
    encoder = ColumnTransformer([("n", StandardScaler(), numbers), ("c", OneHotEncoder(sparse_output=False), recent)]).fit(people)
    action_set = FICO.build_published_action_set(people).encoded_by(encoder)
    blocks = [[name for name in people if f"{kind}Trades" in name] for kind in ("Install", "Revolving")]
    blocks += [
        [name for name in people if start in name] for start in ("InstallBurden", "RevolvingBurden", "AvgYears", "_leq_", "MostRecent")
    ]
    for names in blocks:
        drawn = people.drop_duplicates(names)
        rows = []
        for person in drawn.to_dict("records"):
            for values in product((0, 1), repeat=len(names)):
                after = dict(person) | dict(zip(names, values, strict=True))
                if "_leq_" in names[0]:
                    years = [int(name.split("_")[-1]) for name in names]
                    after["YearsOfAccountHistory"] += sum(y * (person[n] - after[n]) for y, n in zip(years, names, strict=True))
                rows.append((person, after, may_follow(person, after, names)))
        x = action_set.encode(pd.DataFrame([before for before, _, _ in rows]))
        wanted = action_set.encode(pd.DataFrame([after for _, after, _ in rows]))
        reached = torch.isclose(action_set.apply(x, action_set.project(x, wanted - x)), wanted, atol=1e-4).all(1).numpy()
        np.testing.assert_array_equal(reached, [allowed for _, _, allowed in rows], err_msg=names[0])
