"""Action sets for people in the form of the FICO explainability challenge. The people are drawn, and the sets are examples, not advice.

python recipes/fico_challenge_actions.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import StandardScaler
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
    SpecialCodes,
    StepLimit,
    Thermometer,
    Transitions,
)

TRADE_STEPS = (2, 3, 5, 7)
BURDEN_STEPS = (10, 20, 50)
DELINQUENCY_YEARS = (1, 3, 5)
HISTORY = ("ExternalRiskEstimate", "MSinceOldestTradeOpen", "AverageMInFile", "NumTrades60Ever", "NumTrades90Ever")


def draw_people(count: int = 400, seed: int = 0) -> pd.DataFrame:
    """Draw people with the challenge's columns. Codes -7 and -8 say that there was no delinquency, or nothing to tell."""
    g = np.random.default_rng(seed)
    total = g.integers(2, 40, count)
    revolving, instalment = g.integers(0, total // 2 + 1), g.integers(0, total // 2 + 1)
    inquiries = g.integers(0, 8, count)
    trades_60 = g.integers(0, 5, count)
    people = pd.DataFrame(
        {
            "ExternalRiskEstimate": g.integers(40, 95, count),
            "MSinceOldestTradeOpen": g.integers(24, 400, count),
            "AverageMInFile": g.integers(10, 150, count),
            "NumTrades60Ever": trades_60,
            "NumTrades90Ever": g.integers(0, trades_60 + 1),
            "MSinceMostRecentDelq": np.where(g.random(count) < 0.5, g.choice([-7, -8], count), g.integers(0, 84, count)),
            "NumTotalTrades": total,
            "NumSatisfactoryTrades": g.integers(total // 2, total + 1),
            "NumRevolvingTradesWBalance": revolving,
            "NumInstallTradesWBalance": instalment,
            "NumTradesWBalance": revolving + instalment,
            "NetFractionRevolvingBurden": g.integers(0, 120, count),
            "NumInqLast6M": inquiries,
            "NumInqLast6Mexcl7days": g.integers(0, inquiries + 1),
        }
    )
    return people


def build_action_set(people: pd.DataFrame) -> ActionSet:
    """Build an action set that a lender would sign."""
    return ActionSet.from_frame(
        people,
        immutable=[
            "ExternalRiskEstimate",
            "MSinceOldestTradeOpen",
            "AverageMInFile",
            "NumTrades60Ever",
            "NumTrades90Ever",
            "NumTotalTrades",
        ],
        increase_only=["MSinceMostRecentDelq", "NumSatisfactoryTrades"],
        decrease_only=["NetFractionRevolvingBurden", "NumInqLast6M", "NumInqLast6Mexcl7days"],
        bounds={"MSinceOldestTradeOpen": (0, None), "NumTradesWBalance": (0, None)},
        favourable=1,
        constraints=[
            SpecialCodes("MSinceMostRecentDelq", (-7, -8)),
            Linked("MSinceMostRecentDelq", {"MSinceOldestTradeOpen": 1}),  # A month that passes ages every account.
            StepLimit("MSinceMostRecentDelq", up=24),  # Nobody is told to wait for more than two years.
            StepLimit("NetFractionRevolvingBurden", down=40),
            Ordered("NumSatisfactoryTrades", "NumTotalTrades"),
            Ordered("NumInqLast6Mexcl7days", "NumInqLast6M"),
            Computed("NumTradesWBalance", "NumRevolvingTradesWBalance + NumInstallTradesWBalance"),
            AtMost(2, ["NumRevolvingTradesWBalance", "NumInstallTradesWBalance", "NetFractionRevolvingBurden"]),
        ],
    )


def draw_nested_people(count: int = 200, seed: int = 0) -> pd.DataFrame:
    """Draw people with the 0/1 columns to which reachml's study of recourse reduces the challenge."""
    g = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {f"ExternalRiskEstimate_geq_{t}": g.integers(40, 95, count) >= t for t in (50, 70)}
    columns["YearsOfAccountHistory"] = g.integers(2, 30, count)
    average = g.integers(0, 12, count)
    columns |= {f"AvgYearsInFile_geq_{t}": average >= t for t in (3, 5, 7)}
    since = g.integers(0, 5, count)
    columns |= {"MostRecentTradeWithinLastYear": since <= 1, "MostRecentTradeWithinLast2Years": since <= 2}
    delinquent = g.integers(0, 8, count)
    columns |= {f"YearsSinceLastDelqTrade_leq_{t}": delinquent <= t for t in DELINQUENCY_YEARS}
    for kind in ("Install", "Revolving"):
        trades = g.integers(0, 12, count)
        with_balance = g.integers(0, trades + 1)
        columns |= {f"Num{kind}Trades_geq_{t}": trades >= t for t in TRADE_STEPS}
        columns |= {f"Num{kind}TradesWBalance_geq_{t}": with_balance >= t for t in TRADE_STEPS}
        burden = g.integers(0, 80, count)
        columns |= {f"NetFraction{kind}Burden_geq_{t}": burden >= t for t in BURDEN_STEPS}
    columns["NumBank2NatlTradesWHighUtilizationGeq2"] = g.integers(0, 2, count)
    return pd.DataFrame(columns).astype(int)


def build_published_action_set(people: pd.DataFrame) -> ActionSet:
    """Build the action set that reachml publishes for the challenge.

    Of the linkages, those from trades with a balance to trades say that a trade whose balance is gone is closed. They keep the bounds of
    columns that move by themselves too, which ``Implies`` with ``Is`` says.
    """
    groups = [[f"Num{k}Trades{b}_geq_{t}" for t in TRADE_STEPS] for k in ("Install", "Revolving") for b in ("", "WBalance")]
    groups += [[f"NetFraction{k}Burden_geq_{t}" for t in BURDEN_STEPS] for k in ("Install", "Revolving")]
    groups += [[f"YearsSinceLastDelqTrade_leq_{t}" for t in reversed(DELINQUENCY_YEARS)]]
    average = [f"AvgYearsInFile_geq_{t}" for t in (3, 5, 7)]
    recent = ("MostRecentTradeWithinLastYear", "MostRecentTradeWithinLast2Years")
    return ActionSet.from_frame(
        people,
        immutable=[*(name for name in people if name.startswith("ExternalRiskEstimate")), "YearsOfAccountHistory"],
        increase_only=average,
        decrease_only=[*(name for group in groups for name in group), "NumBank2NatlTradesWHighUtilizationGeq2"],
        bounds={name: (0, 1) for name in people if set(people[name]) <= {0, 1} and name not in recent},
        categorical=recent,
        favourable=1,
        constraints=[
            *(
                Implies(Changes(f"Num{k}TradesWBalance_geq_{t}"), Is(f"Num{k}Trades_geq_{t}", 0))
                for k in ("Install", "Revolving")
                for t in TRADE_STEPS
            ),
            *(Linked(f"YearsSinceLastDelqTrade_leq_{t}", {"YearsOfAccountHistory": -t}) for t in DELINQUENCY_YEARS),
            Transitions(recent, {(0, 0): [(1, 1)], (1, 0): [(1, 1)], (0, 1): [(1, 1)], (1, 1): [(0, 0)]}),
            *(Thermometer(tuple(group)) for group in [*groups, average]),
        ],
    )


def main() -> None:
    """Print advice of the lender's action set for a few people whom a small model refuses."""
    people = draw_people()
    encoder = ColumnTransformer([("numbers", StandardScaler(), list(people))]).fit(people)
    action_set = build_action_set(people).encoded_by(encoder)
    x = action_set.encode(people)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    refused = (model(x).argmax(1) == 0).nonzero()[:5, 0].numpy()
    batch = cfptq.recourse.solve(model, people.iloc[refused], action_set, target=1, progress=False)
    print(action_set)
    print("\n".join(action_set.describe(batch.factual, batch.delta)))


if __name__ == "__main__":
    main()
