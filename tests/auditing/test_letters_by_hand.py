"""Letters to thirty people, judged by the audit and by a few lines of plain Python that know nothing of tables or models."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn
from typer.testing import CliRunner

from cfptq.actions import ActionSet
from cfptq.auditing import Protocol, run_audit
from cfptq.cli import app
from cfptq.network import capture, to_onnx_model

#: Points from which the first and the second model accept. A person's points are income and 3 more for training.
FIRST, SECOND = 10, 12


@dataclass(frozen=True)
class Person:
    key: str
    income: int
    trained: str
    region: str


@dataclass(frozen=True)
class Letter:
    key: str
    income: int | None = None
    trained: str | None = None


PEOPLE = [Person(f"{row:03d}", (7 * row) % 12, "yes" if row % 4 == 0 else "no", "north" if row < 18 else "south") for row in range(30)]
LETTERS = [
    *(Letter(f"{row:03d}", income=10) for row in range(10)),
    *(Letter(f"{row:03d}", income=9, trained="yes") for row in range(5, 10)),  # a second letter
    *(Letter(f"{row:03d}", income=12) for row in range(10, 20)),
    *(Letter(f"{row:03d}", trained="yes") for row in range(20, 26)),
    Letter("900", income=12),
    Letter("5", income=12),  # without its zeros it is another key
    Letter("", income=12),
    Letter("027"),  # asks for nothing
]


def points(income: int, trained: str) -> int:
    return income + (3 if trained == "yes" else 0)


@dataclass(frozen=True)
class Truth:
    promised: int
    kept_before: int
    kept: int
    broken: tuple[int, ...]
    unmatched: tuple[str, ...]
    without_letter: tuple[str, ...]
    not_granted: int
    by_region: dict[str, tuple[int, int, int]]


def judge_by_hand() -> Truth:
    held: dict[int, list[tuple[bool, bool]]] = {}
    unmatched, not_granted = [], 0
    for letter in LETTERS:
        if letter.income is None and letter.trained is None:
            continue
        rows = [row for row, person in enumerate(PEOPLE) if person.key == letter.key]
        if not rows:
            if letter.key:
                unmatched.append(letter.key)
            continue
        person = PEOPLE[rows[0]]
        reached = points(
            person.income if letter.income is None else letter.income, person.trained if letter.trained is None else letter.trained
        )
        is_same = (letter.income in (None, person.income)) and (letter.trained in (None, person.trained))
        if is_same and points(person.income, person.trained) >= FIRST:
            continue  # accepted already, and nothing asked
        held.setdefault(rows[0], []).append((reached >= FIRST, reached >= SECOND))
        not_granted += reached < FIRST
    before = {row for row, outcomes in held.items() if any(first for first, _ in outcomes)}
    after = {row for row, outcomes in held.items() if any(second for _, second in outcomes)}
    silent = [p.key for row, p in enumerate(PEOPLE) if row not in held and points(p.income, p.trained) < FIRST]
    regions = {
        region: tuple(sum(PEOPLE[row].region == region for row in rows) for rows in (held, before, before - after))
        for region in ("north", "south")
    }
    return Truth(len(held), len(before), len(after), tuple(sorted(before - after)), tuple(unmatched), tuple(silent), not_granted, regions)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def setting() -> tuple[pd.DataFrame, pd.DataFrame, ActionSet, nn.Module, nn.Module]:
    """People and letters as tables, an action set, and the two models on its columns."""
    frame = pd.DataFrame([vars(person) for person in PEOPLE]).rename(columns={"key": "person_id"})
    letters = pd.DataFrame([vars(letter) for letter in LETTERS]).rename(columns={"key": "person_id"})
    features = frame[["income", "trained"]]
    encoder = ColumnTransformer([("n", StandardScaler(), ["income"]), ("t", OneHotEncoder(sparse_output=False), ["trained"])])
    actions = ActionSet.from_frame(features, favourable=1, bounds={"income": (0, 20)}).encoded_by(encoder.fit(features))
    scaler = encoder.named_transformers_["n"]

    def build(cut: int) -> nn.Module:
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [float(scaler.scale_[0]), 0.0, 3.0]]))
            model.bias.copy_(torch.tensor([0.0, float(scaler.mean_[0]) - cut + 0.5]))
        return model.eval()

    return frame, letters, actions, build(FIRST), build(SECOND)


def test_the_audit_finds_what_plain_python_finds(setting: tuple[pd.DataFrame, pd.DataFrame, ActionSet, nn.Module, nn.Module]) -> None:
    frame, letters, actions, first, second = setting
    truth = judge_by_hand()
    assert truth.broken and truth.not_granted and truth.kept < truth.kept_before < truth.promised, "the case is built otherwise"
    protocol = Protocol(max_people=0, resamples=50, smallest_group=3)
    groups = {"region": frame["region"]}
    advice = run_audit(
        first, second, frame, actions, issued=letters, id="person_id", groups=groups, protocol=protocol, progress=False
    ).issued
    assert advice is not None
    assert (advice.promised, advice.kept_before, advice.kept, advice.broken) == (
        truth.promised,
        truth.kept_before,
        truth.kept,
        truth.broken,
    )
    assert (advice.unmatched, advice.without_letter, advice.without_key) == (truth.unmatched, truth.without_letter, (len(LETTERS) - 2,))
    assert len(advice.not_granted) == truth.not_granted
    found = {name: (group.promised, group.kept_before, group.broken) for name, group in advice.groups["region"].groups.items()}
    assert found == truth.by_region
    shares = [broken / before for _, before, broken in truth.by_region.values()]
    assert advice.groups["region"].validity_drop.gap == pytest.approx(max(shares) - min(shares))
    assert advice.validity_drop == pytest.approx(len(truth.broken) / truth.kept_before)


def test_the_command_line_finds_it_too(
    setting: tuple[pd.DataFrame, pd.DataFrame, ActionSet, nn.Module, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, _, actions, first, second = setting
    truth = judge_by_hand()
    monkeypatch.chdir(tmp_path)
    frame.to_csv("people.csv", index=False)
    with Path("letters.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("person_id", "income", "trained"), *((each.key, each.income, each.trained) for each in LETTERS)])
    actions.save("actions.yaml")
    for name, model in (("first.onnx", first), ("second.onnx", second)):
        onnx.save(to_onnx_model(capture(model, torch.tensor(np.zeros((2, 3), "f4")))), name)
    words = ["audit", "first.onnx", "second.onnx", "--people", "people.csv", "--action-set", "actions.yaml", "--issued", "letters.csv"]
    words += ["--id", "person_id", "--group", "region", "--max-vd", "0.02", "--json", "r.json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    content = json.loads(Path("r.json").read_text())
    issued = content["issued"]
    assert (issued["promised"], issued["kept_before"], issued["kept"]) == (truth.promised, truth.kept_before, truth.kept)
    counts = issued["counts"]
    assert (counts["broken"], counts["unmatched"], counts["without_letter"]) == (
        len(truth.broken),
        len(truth.unmatched),
        len(truth.without_letter),
    )
    assert content["affected"]["count"] == len(truth.broken)
    # A log names nobody unless it is asked to.
    assert "900" not in result.output and "letters" not in issued and "people" not in content["affected"]
    CliRunner().invoke(app, [*words, "--include-people"])
    named = json.loads(Path("r.json").read_text())
    assert named["issued"]["unmatched"] == list(truth.unmatched)
    assert [person["key"] for person in named["affected"]["people"]] == [PEOPLE[row].key for row in truth.broken]
