"""Letters are joined to the people they were sent to, or refused, whatever form and order they come in."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cfptq.actions import ActionSet
from cfptq.auditing import IssuedAdvice, Protocol, run_audit
from cfptq.errors import CfptqError, DataError
from cfptq.testing import random_classifier, small_action_set, small_people

NO_SOLVER = Protocol(max_people=0, resamples=20)
ACTION_SET = small_action_set()
PEOPLE = small_people(60).assign(person_id=np.random.default_rng(5).permutation(60) + 1000)
ROWS = ACTION_SET.encode(PEOPLE)
F = random_classifier(ROWS, seed=2)


def stricter(model: nn.Module, by: float) -> nn.Module:
    """The same model with a bar that is higher by so many logits."""

    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = model(x) - torch.tensor([0.0, by])
            return out

    return Shifted().eval()


def margin(frame: pd.DataFrame) -> torch.Tensor:
    with torch.no_grad():
        logits = F(ACTION_SET.encode(frame))
    return logits[:, 1] - logits[:, 0]


#: Letters that ask for another job and less debt, to everybody.
LETTERS = PEOPLE.assign(debt=(PEOPLE["debt"] * 0.2).round(2), job="nurse")
GRANTED = margin(LETTERS) > 0
#: A bar that breaks some of the promises that F grants.
BAR = float(margin(LETTERS)[GRANTED].median())
F_Q = stricter(F, BAR)


def judged(letters: object, people: object = PEOPLE, space: ActionSet = ACTION_SET, **more: object) -> IssuedAdvice:
    report = run_audit(F, F_Q, people, space, issued=letters, protocol=NO_SOLVER, progress=False, **more)  # type: ignore[arg-type]
    assert report.issued is not None
    return report.issued


def verdict(advice: IssuedAdvice) -> tuple[object, ...]:
    return advice.promised, advice.kept, advice.kept_before, advice.refused, advice.broken


def test_the_verdict_is_what_the_two_models_say_about_each_letter() -> None:
    advice = judged(LETTERS)
    holds = margin(LETTERS) > BAR
    assert (advice.promised, advice.kept, advice.kept_before) == (60, int(holds.sum()), int(GRANTED.sum()))
    assert advice.broken == tuple((GRANTED & ~holds).nonzero().flatten().tolist()) and advice.broken
    assert [letter.holds for letter in advice.letters] == holds.tolist()
    assert advice.validity_drop == pytest.approx(len(advice.broken) / advice.kept_before)


@pytest.mark.parametrize("as_index", [False, True])
def test_order_and_missing_letters_do_not_matter_where_there_is_a_key(as_index: bool) -> None:
    right = judged(LETTERS)
    shuffled = LETTERS.sample(frac=1, random_state=1)
    if as_index:
        advice = judged(shuffled.set_index("person_id"), PEOPLE.set_index("person_id"))
    else:
        advice = judged(shuffled.reset_index(drop=True), id="person_id")
    assert verdict(advice) == verdict(right)
    fewer = judged(LETTERS.drop(index=[3, 5]).reset_index(drop=True), id="person_id")
    assert fewer.promised == 58
    refused = {str(PEOPLE["person_id"][row]) for row in (3, 5) if margin(PEOPLE)[row] <= 0}
    assert set(fewer.without_letter) == refused


def test_the_index_of_a_frame_is_a_key() -> None:
    right = judged(LETTERS)
    assert verdict(judged(LETTERS.sample(frac=1, random_state=1))) == verdict(right)
    assert verdict(judged(LETTERS.sort_values("income"), ROWS)) == verdict(right)


def test_an_index_name_that_the_other_table_has_as_a_column_is_the_key() -> None:
    shuffled = LETTERS.sample(frac=1, random_state=2).reset_index(drop=True)
    advice = judged(shuffled, PEOPLE.set_index("person_id"))
    assert verdict(advice) == verdict(judged(LETTERS)) and advice.joined_by == "'person_id'"


@pytest.mark.parametrize("form", [str, float, lambda value: f" {value}.0"])
def test_a_key_is_the_same_as_text_and_as_a_number(form: object) -> None:
    shuffled = LETTERS.sample(frac=1, random_state=1)
    shuffled["person_id"] = [form(value) for value in shuffled["person_id"]]  # type: ignore[operator]
    assert verdict(judged(shuffled.reset_index(drop=True), id="person_id")) == verdict(judged(LETTERS))


def test_keys_with_leading_zeros_are_other_keys() -> None:
    people = PEOPLE.assign(person_id=PEOPLE["person_id"].astype(str))
    letters = LETTERS.assign(person_id="0" + people["person_id"])
    letters.loc[7, "person_id"] = people["person_id"][7]
    advice = judged(letters, people, id="person_id")
    assert advice.promised == 1 and len(advice.unmatched) == 59


def test_letters_without_a_key_are_paired_by_position_where_immutable_features_agree() -> None:
    without = LETTERS.drop(columns="person_id")
    assert verdict(judged(without)) == verdict(judged(LETTERS))
    with pytest.raises(DataError, match=r"paired with people by position, and age .immutable. differs in"):
        judged(without.sample(frac=1, random_state=1).reset_index(drop=True))
    swapped = without.copy()
    swapped.iloc[[2, 9]] = swapped.iloc[[9, 2]].to_numpy()
    with pytest.raises(DataError, match=r"age .immutable. differs in 2 of 60 rows: 2, 9"):
        judged(swapped.astype(without.dtypes.to_dict()))
    with pytest.raises(DataError, match="one row per person"):
        judged(without.drop(index=4).reset_index(drop=True))
    columns = ACTION_SET.encode(LETTERS)
    assert verdict(judged(columns, ROWS)) == verdict(judged(LETTERS))
    with pytest.raises(DataError, match="age"):
        judged(columns.flip(0), ROWS)
    with pytest.raises(DataError, match="one row per person"):
        judged(columns[1:], ROWS)


def test_a_column_that_numbers_people_speaks_against_their_position() -> None:
    loose = ACTION_SET.refine("age", mutability="free")
    shuffled = LETTERS.sample(frac=1, random_state=1).reset_index(drop=True)
    with pytest.raises(DataError, match="Give id='person_id'"):
        judged(shuffled, space=loose)


def test_letters_numbered_from_0_for_people_with_another_index_are_paired_by_what_agrees() -> None:
    people = PEOPLE.sample(frac=1, random_state=4)
    letters = LETTERS.loc[people.index]
    right = judged(letters, people)
    assert verdict(judged(letters.reset_index(drop=True), people)) == verdict(right)
    assert verdict(judged(letters.sort_index(), people)) == verdict(right)
    loose = ACTION_SET.refine("age", mutability="free")
    with pytest.raises(DataError, match="it is open whether"):
        judged(letters.sort_index(), people, loose)


def test_unmatched_and_empty_keys_are_counted_and_listed() -> None:
    letters = LETTERS.astype({"person_id": object})
    letters.loc[0, "person_id"] = "nobody-1"
    letters.loc[[1, 2], "person_id"] = None
    advice = judged(letters, id="person_id")
    assert advice.promised == 57
    assert advice.unmatched == ("nobody-1",) and advice.without_key == (1, 2)
    words = advice.describe()
    assert "1 letter named nobody in the table of people: nobody-1" in words and "2 letters had an empty key: rows 1, 2" in words


def test_letters_that_name_nobody_are_refused() -> None:
    with pytest.raises(DataError, match="none of 60 does by 'person_id'"):
        judged(LETTERS.assign(person_id=LETTERS["person_id"] + 9000), id="person_id")
    with pytest.raises(DataError, match="none of 60 does by the index"):
        judged(LETTERS.set_axis([f"p{row}" for row in range(60)]))
    with pytest.raises(DataError, match=r"repeat, such as '7'"):
        judged(LETTERS, PEOPLE.assign(person_id=7), id="person_id")
    with pytest.raises(DataError, match=r"did you mean 'person_id'"):
        judged(LETTERS, id="personid")
    with pytest.raises(DataError, match="lose digits"):
        judged(LETTERS.assign(person_id=LETTERS["person_id"] + 1e17), id="person_id")
    with pytest.raises(DataError, match="must be a DataFrame"):
        judged(ACTION_SET.encode(LETTERS), ROWS, id="person_id")


def test_a_person_with_several_letters_is_kept_if_one_holds() -> None:
    broken = judged(LETTERS).broken[0]
    better = LETTERS.loc[[broken]].assign(debt=0.0, income=LETTERS["income"].max())
    for share in np.linspace(0, 1, 11):  # a letter that both models grant
        trial = better.assign(income=PEOPLE["income"].quantile(share))
        if float(margin(trial)) > BAR:
            better = trial
            break
    else:
        pytest.skip("no income is enough")
    both = judged(pd.concat([LETTERS, better], ignore_index=True), id="person_id")
    once = judged(LETTERS, id="person_id")
    assert both.promised == once.promised == 60
    assert set(once.broken) - set(both.broken) == {broken}
    assert [letter.person for letter in both.letters].count(broken) == 2
    assert "61 letters to 60 people" in both.describe()


@pytest.mark.parametrize("empty", [np.nan, None, "", "  "])
def test_an_empty_cell_means_that_the_value_stays(empty: object) -> None:
    changes = LETTERS.astype(object).where(LETTERS.ne(PEOPLE), empty)
    assert verdict(judged(changes)) == verdict(judged(LETTERS))
    keyed = changes.assign(person_id=LETTERS["person_id"]).sample(frac=1, random_state=3).reset_index(drop=True)
    assert verdict(judged(keyed, id="person_id")) == verdict(judged(LETTERS))
    few = judged(LETTERS[["person_id", "debt", "job"]], id="person_id")
    assert verdict(few) == verdict(judged(LETTERS))
    assert "no column 'age', 'income', so these stay" in few.describe()


def test_empty_letters_are_none_and_letters_without_any_change_are_refused() -> None:
    blank = LETTERS.astype(object)
    blank.loc[[4, 6], ["age", "income", "debt", "job"]] = None
    assert judged(blank, id="person_id").promised == 58
    with pytest.raises(DataError, match="must ask for a change"):
        judged(LETTERS.assign(age=np.nan, income=np.nan, debt=np.nan, job=None), id="person_id")
    with pytest.raises(DataError, match="did you mean 'income'"):
        judged(LETTERS.rename(columns={"income": "incme"}), id="person_id")


def test_letters_that_the_action_set_forbids_are_counted_and_named() -> None:
    letters = LETTERS.copy()
    letters.loc[[1, 8], "age"] += 10
    letters.loc[5, "income"] = 1e6
    strict = ACTION_SET.replace(max_changes=2)
    advice = judged(letters, space=strict, id="person_id")
    wrong = {letter.letter: letter.forbidden for letter in advice.forbidden}
    assert set(wrong) == {1, 5, 8}
    assert wrong[1][0] == "age is immutable" and "at most 2 features may change" in wrong[1]
    assert wrong[5][0].startswith("income is asked for beyond")
    assert "3 letters asked for what the action set does not allow" in advice.describe() and "age is immutable (2)" in advice.describe()
    assert judged(LETTERS, space=strict, id="person_id").forbidden == ()


def test_letters_that_the_first_model_does_not_grant_are_counted_even_if_the_second_grants_them() -> None:
    easier = stricter(F, -100.0)
    report = run_audit(F, easier, PEOPLE, ACTION_SET, issued=LETTERS, protocol=NO_SOLVER, progress=False)
    never = int((~GRANTED).sum())
    assert report.issued is not None and report.issued.kept == 60 and len(report.issued.not_granted) == never > 0
    assert f"{never} letters would be refused by the first model itself" in " ".join(str(report).split())
    assert len(report.to_dict(include_people=True)["issued"]["letters"]) == 60
    assert "letters" not in report.to_dict()["issued"] and report.to_dict()["issued"]["counts"]["letters"] == 60


def test_strict_refuses_what_the_report_would_remark_on() -> None:
    judged(LETTERS, id="person_id", strict=True)
    for letters, word in (
        (LETTERS.assign(age=LETTERS["age"] + 1), "age"),
        (LETTERS.assign(person_id=LETTERS["person_id"].where(LETTERS.index > 0, 5)), "nobody"),
    ):
        with pytest.raises(CfptqError, match=word):
            judged(letters, id="person_id", strict=True)
    with pytest.warns(UserWarning), pytest.raises(DataError, match=r"strict is set. income: 60 of 60 rows"):
        judged(LETTERS, PEOPLE.assign(income=PEOPLE["income"] * 1000), id="person_id", strict=True)


def test_strict_refuses_features_that_hold_dates_or_number_people() -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder

    days = pd.date_range("2020-01-01", periods=len(PEOPLE)).strftime("%d.%m.%Y")
    rows = PEOPLE.assign(since=days.to_numpy(), reference=[f"A-{row:05}" for row in range(len(PEOPLE))])
    words_of = {"since": "hold a date as text, such as '01.01.2020'", "reference": "have a value of their own, such as 'A-00000'"}
    for column, words in words_of.items():
        features = rows[["income", column]]
        words_encoder = ("words", OneHotEncoder(sparse_output=False), [column])
        encoder = ColumnTransformer([("numbers", "passthrough", ["income"]), words_encoder]).fit(features)
        space = ActionSet.from_frame(features, categorical=[column], immutable=[column], favourable=1).encoded_by(encoder)
        f = random_classifier(space.encode(features), seed=1)
        with pytest.raises(DataError, match=f"strict is set. {column}: 60 of 60 rows {words}"):
            run_audit(f, f, features, space, strict=True, protocol=NO_SOLVER, progress=False)
        report = run_audit(f, f, features, space, protocol=NO_SOLVER, progress=False)
        assert words in " ".join(str(report).split()) and [remark.column for remark in report.remarks] == [column]


def test_columns_that_the_model_does_not_read_are_no_cause_for_a_remark() -> None:
    rows = PEOPLE.assign(since=pd.date_range("2020-01-01", periods=len(PEOPLE)).strftime("%Y-%m-%d").to_numpy())
    assert run_audit(F, F_Q, rows, ACTION_SET, strict=True, protocol=NO_SOLVER, progress=False).remarks == ()


def test_what_a_person_lacks_stays_missing_in_a_letter_that_leaves_it_out() -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    people = PEOPLE.assign(income=PEOPLE["income"].where(PEOPLE.index % 3 > 0))
    steps = [("n", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["age", "income", "debt"])]
    encoder = ColumnTransformer([*steps, ("job", OneHotEncoder(sparse_output=False), ["job"])]).fit(people)
    space = ActionSet.from_frame(people.drop(columns="person_id"), immutable=["age"], favourable=1).encoded_by(encoder)
    letters = people.assign(job="nurse", debt=people["debt"] * 0.2)[["person_id", "job", "debt"]]
    advice = judged(letters, people, space, id="person_id")
    wanted = space.encode(people.assign(job="nurse", debt=people["debt"] * 0.2))
    with torch.no_grad():
        logits = F_Q(wanted)
    assert [letter.holds for letter in advice.letters] == (logits[:, 1] > logits[:, 0]).tolist()


def test_an_undefined_validity_drop_of_letters_is_nan() -> None:
    report = run_audit(stricter(F, 100.0), F, PEOPLE, ACTION_SET, issued=LETTERS, protocol=NO_SOLVER, progress=False)
    assert report.issued is not None and report.issued.kept_before == 0 and math.isnan(report.issued.validity_drop)
