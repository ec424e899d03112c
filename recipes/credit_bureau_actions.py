"""An action set for a consumer-credit bureau file. The people are drawn, and the set is an example, not advice.

python recipes/credit_bureau_actions.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

import cfptq
from cfptq.actions import (
    ActionSet,
    AtMost,
    Changes,
    Computed,
    Implies,
    Is,
    Linked,
    Ordered,
    PerPerson,
    SpecialCodes,
    Stays,
    StepLimit,
    Transitions,
    Was,
)

NUMBERS = [
    "age_months", "months_employed", "income", "card_debt", "loan_debt", "debt", "debt_to_income", "accounts", "accounts_with_balance",
    "months_since_delinquency",
]  # fmt: skip
PERSONAL = ["in_hardship_plan", "most_income"]
"""Columns of the frame that the model never sees."""


def draw_people(count: int = 400, seed: int = 0) -> pd.DataFrame:
    """Draw a bureau file with what a lender knows of each applicant beside it."""
    g = np.random.default_rng(seed)
    accounts = g.integers(1, 12, count)
    people = pd.DataFrame(
        {
            "age_months": g.integers(240, 840, count),
            "months_employed": g.integers(0, 200, count),
            "employment": g.choice(["none", "part-time", "full-time"], count),
            "housing": g.choice(["rent", "mortgage", "own"], count),
            "income": g.lognormal(10.2, 0.4, count).round(),
            "card_debt": g.integers(0, 9000, count),
            "loan_debt": g.integers(0, 20000, count),
            "accounts": accounts,
            "accounts_with_balance": g.integers(1, accounts + 1),
            "months_since_delinquency": np.where(g.random(count) < 0.4, g.choice([-7, -8, -9], count), g.integers(0, 80, count)),
            "in_hardship_plan": g.random(count) < 0.1,
        }
    )
    people["debt"] = people.card_debt + people.loan_debt
    people["debt_to_income"] = people.debt / people.income
    people["most_income"] = (people.income * g.uniform(1.05, 1.4, count)).round()
    return people


def build_action_set(people: pd.DataFrame) -> ActionSet:
    """Build an action set that a lender would sign."""
    return ActionSet.from_frame(
        people.drop(columns=PERSONAL),
        immutable=["age_months", "accounts", "loan_debt"],
        increase_only=["months_employed", "months_since_delinquency"],
        bounds={"card_debt": (0, None), "accounts_with_balance": (0, None), "age_months": (0, None)},
        max_changes=4,
        favourable=1,
        constraints=[
            SpecialCodes("months_since_delinquency", (-7, -8, -9)),
            Linked("months_employed", {"age_months": 1}),
            StepLimit("months_employed", up=24),
            StepLimit("income", up=0.2, down=0.0, relative=True),
            PerPerson("income", most="most_income"),
            PerPerson("card_debt", frozen="in_hardship_plan"),
            Computed("debt", "card_debt + loan_debt"),
            Computed("debt_to_income", "debt / income"),
            Implies(Changes("card_debt", to=0), Changes("accounts_with_balance", by=-1)),
            Ordered("accounts_with_balance", "accounts"),
            Implies(Is("employment", "none"), Stays("months_employed")),
            Implies(Was("age_months", (780, None)), Stays("employment")),
            Transitions("employment", {"none": ["part-time", "full-time"], "part-time": ["full-time"]}),
            Transitions("housing", {"mortgage": ["own"]}),
            AtMost(1, ["income", "employment"]),
        ],
    )


def fit_encoder(people: pd.DataFrame) -> ColumnTransformer:
    """Fit the encoder of the model's columns."""
    levels = OneHotEncoder(sparse_output=False)
    return ColumnTransformer([("numbers", StandardScaler(), NUMBERS), ("levels", levels, ["employment", "housing"])]).fit(people)


def main() -> None:
    """Print advice for a few people whom a small model refuses."""
    people = draw_people()
    action_set = build_action_set(people).encoded_by(fit_encoder(people))
    x = action_set.encode(people)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    refused = people.iloc[(model(x).argmax(1) == 0).nonzero()[:5, 0].numpy()]
    batch = cfptq.recourse.solve(model, refused, action_set, target=1, progress=False)
    print(action_set)
    print("\n".join(action_set.describe(batch.factual, batch.delta)))


if __name__ == "__main__":
    main()
