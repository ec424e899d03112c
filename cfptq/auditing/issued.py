"""Checks of advice that people have already been given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.actions import ActionSet, Remark
from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.advice_groups import AdviceGrouping, evaluate_advice_groups
from cfptq.auditing.evaluation import decide_points
from cfptq.auditing.joining import Key
from cfptq.auditing.letters import Letters
from cfptq.auditing.protocol import Protocol
from cfptq.auditing.wording import format_count
from cfptq.errors import DataError
from cfptq.io.json import canonicalize
from cfptq.metrics import Interval, Proportion, bootstrap_intervals, evaluate_statistic, premature_acceptances, target_failures
from cfptq.metrics.arrays import Floats
from cfptq.network.predictor import Predictor

#: Equal steps from a person's row to the point that the advice leads to.
LETTER_STEPS = 50
#: Keys that a sentence lists. The JSON form lists all.
SHOWN_KEYS = 10


@dataclass(frozen=True)
class LetterOutcome:
    """Outcome of one letter on both models.

    Attributes:
        letter: Row number in the table of letters.
        person: Row number in the table of people.
        key: Key of the person. None where letters were joined by position.
        held_before: True if the full-precision model accepts what the letter asks for.
        holds: True if the quantized model accepts it.
        forbidden: Rules of the action set that the letter breaks.
    """

    letter: int
    person: int
    key: Key | None
    held_before: bool
    holds: bool
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class IssuedAdvice:
    """Outcome of issued advice on both models.

    A person may have several letters, and a promise counts as kept if one of them holds. Row numbers count from 0.

    Attributes:
        promised: Number of people with letters.
        kept: Number of these people with a letter that the quantized model accepts.
        kept_before: Number of these people with a letter that the full-precision model accepts.
        refused: Row numbers of people none of whose letters the quantized model accepts.
        broken: Row numbers of people among them with a letter that the full-precision model accepts.
        validity_drop: Share of ``kept_before`` that is broken, the Validity Drop of the advice. NaN if ``kept_before`` is 0.
        kept_rate: Share of ``promised`` that is kept.
        premature_validity: Share of ``kept_before`` whom the quantized model accepts already at the last of ``LETTER_STEPS`` equal steps
            from row to advice that the full-precision model refuses, on the way to the first of a person's letters that the
            full-precision model accepts. There is no solver's path, so it must not be compared with the premature validity of
            projected-gradient recourse.
        ci95: Intervals of ``validity_drop``, ``kept_rate`` and ``premature_validity``.
        letters: Outcome of each letter.
        joined_by: What letters were joined to people by.
        accepted_already: Number of letters to people whom the full-precision model accepts as they are.
        unmatched: Keys of letters that no person has.
        without_key: Row numbers of letters whose key is empty.
        without_letter: Keys, or row numbers, of refused people who have no letter.
        groups: Outcome by group, by the name of the attribute.
        remarks: How letters were read, where their sender may have meant something else.
        notes: Sentences on the table of letters.
    """

    promised: int
    kept: int
    kept_before: int
    refused: tuple[int, ...]
    broken: tuple[int, ...]
    validity_drop: float
    kept_rate: float
    premature_validity: float
    ci95: Mapping[str, Interval]
    letters: tuple[LetterOutcome, ...]
    joined_by: str
    accepted_already: int = 0
    unmatched: tuple[Key, ...] = ()
    without_key: tuple[int, ...] = ()
    without_letter: tuple[Key, ...] = ()
    groups: Mapping[str, AdviceGrouping] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def forbidden(self) -> tuple[LetterOutcome, ...]:
        """Letters that ask for what the action set does not allow."""
        return tuple(letter for letter in self.letters if letter.forbidden)

    @property
    def not_granted(self) -> tuple[LetterOutcome, ...]:
        """Letters that the full-precision model itself does not grant."""
        return tuple(letter for letter in self.letters if not letter.held_before)

    def to_dict(self, include_people: bool = False, smallest: int = 0) -> dict[str, Any]:
        """Return plain values for JSON.

        Args:
            include_people: List keys, row numbers and the outcome of each letter. Otherwise they are counted.
            smallest: Fewest people of a group that is listed.
        """
        lists = ("letters", "refused", "broken", "unmatched", "without_key", "without_letter")
        plain = {name: value for name, value in vars(self).items() if name not in (*lists, "groups", "remarks")}
        plain["counts"] = {name: len(getattr(self, name)) for name in (*lists, "forbidden", "not_granted")}
        plain["groups"] = {attribute: grouping.to_dict(smallest) for attribute, grouping in self.groups.items()}
        plain["remarks"] = [remark.to_dict() for remark in self.remarks]
        if include_people:
            plain |= {name: getattr(self, name) for name in lists}
            plain["letters"] = [asdict(letter) for letter in self.letters]
        result: dict[str, Any] = canonicalize(plain)
        return result

    def describe(self) -> str:
        """Describe the outcome in words."""
        sentences = [f"Of {format_count(self.promised, 'people')} with letters, {self.kept} still get what they were promised."]
        if self.refused:
            sentences.append(f"The second model broke the promises of {len(self.broken)}. Refused: {self._name_people(self.refused)}.")
        return " ".join([*sentences, *self.findings()])

    def findings(self, names_people: bool = True) -> tuple[str, ...]:
        """Return a sentence on each thing about the letters that a reader must know beside their outcome.

        Args:
            names_people: Name people by their keys or rows.
        """

        def name(words: str) -> str:
            return f": {words}." if names_people else "."

        found = [f"Letters were joined to people by {self.joined_by}."]
        if never := self.promised - self.kept_before:
            found.append(f"None of the letters of {format_count(never, 'people')} holds on the first model either.")
        if self.not_granted:
            words = f"{format_count(len(self.not_granted), 'letters')} would be refused by the first model itself"
            found.append(f"{words}{name(self._name(self.not_granted))}")
        if self.forbidden:
            rules = Counter(rule for letter in self.forbidden for rule in letter.forbidden)
            named = ", ".join(f"{rule} ({number})" for rule, number in rules.most_common())
            found.append(
                f"{format_count(len(self.forbidden), 'letters')} asked for what the action set does not allow: {named}. "
                f"They are judged like the others{name(self._name(self.forbidden))}"
            )
        if self.accepted_already:
            found.append(f"{format_count(self.accepted_already, 'letters')} went to people whom the first model accepts as they are.")
        if len(self.letters) > self.promised:
            found.append(
                f"There are {format_count(len(self.letters), 'letters')} to {format_count(self.promised, 'people')}. "
                "A promise counts as kept if one of a person's letters holds."
            )
        if self.unmatched:
            found.append(f"{format_count(len(self.unmatched), 'letters')} named nobody in the table of people{name(_list(self.unmatched))}")
        if self.without_key:
            found.append(f"{format_count(len(self.without_key), 'letters')} had an empty key{name('rows ' + _list(self.without_key))}")
        if self.without_letter:
            found.append(
                f"{format_count(len(self.without_letter), 'people')} were refused and got no letter{name(_list(self.without_letter))}"
            )
        return (*found, *self.notes, *(f"Letters, {remark}" for remark in self.remarks))

    def _name_people(self, rows: Sequence[int]) -> str:
        """Name people by their keys, or else by their rows."""
        keys = {letter.person: letter.key for letter in self.letters}
        names = [keys[row] for row in rows]
        return f"rows {_list(rows)}" if None in names else f"people {_list(names)}"

    def _name(self, letters: Sequence[LetterOutcome]) -> str:
        if self.joined_by == "position":
            return f"rows {_list([letter.letter for letter in letters])}"
        return f"people {_list([letter.key for letter in letters])}"


def check_issued(
    f: Predictor,
    f_q: Predictor,
    letters: Letters,
    rows: Tensor,
    target: Tensor,
    accepted: Tensor,
    space: ActionSpace,
    protocol: Protocol,
    seed: int = 0,
    groups: Mapping[str, Mapping[str, NDArray[np.int64]]] | None = None,
) -> IssuedAdvice:
    """Check the points that people were told to reach on both models.

    An unchanged letter to a person who is accepted already is none.

    Args:
        f: Full-precision model.
        f_q: Quantized model.
        letters: Letters joined to people, see ``cfptq.auditing.letters.read_letters``.
        rows: Columns of everyone, (N, ...).
        target: Target classes, (N,).
        accepted: True where the full-precision model gives the target without any action, (N,).
        space: Action space of the rows.
        protocol: Resamples and level of the intervals.
        seed: Seed of the intervals.
        groups: Row numbers by the name of the attribute and of the group.

    Raises:
        DataError: No letter asks for a change.
    """
    persons = torch.from_numpy(letters.person)
    starts, points = rows[persons], letters.points
    # Advice that was kept in float32 differs from the person's own values by rounding, which is no change.
    slack = space.rounding(starts) if isinstance(space, ActionSet) else torch.zeros_like(points)
    is_same = (points - starts).abs() <= slack
    points = torch.where(is_same, starts, points)
    judged = ~(accepted[persons] & is_same.flatten(1).all(dim=1))
    if not bool(judged.any()):
        raise DataError(
            f"issued must ask for a change, got {len(points)} rows without any. Give the points that people were told to reach."
        )
    persons, starts, points = persons[judged], starts[judged], points[judged]
    before = (decide_points(f, points) == target[persons]).numpy()
    after = (decide_points(f_q, points) == target[persons]).numpy()
    numbers = letters.number[judged.numpy()].tolist()
    rules = [entry for entry, is_judged in zip(letters.forbidden, judged.tolist(), strict=True) if is_judged]
    outcomes = tuple(
        LetterOutcome(number, person, None if letters.keys is None else letters.keys[person], held_before, holds, forbidden)
        for number, person, held_before, holds, forbidden in zip(
            numbers, persons.tolist(), before.tolist(), after.tolist(), rules, strict=True
        )
    )
    people, place = np.unique(persons.numpy(), return_inverse=True)
    held = np.zeros(len(people), dtype=bool)
    holds = held.copy()
    np.logical_or.at(held, place, before)
    np.logical_or.at(holds, place, after)
    broken = Proportion(target_failures(holds, np.ones(len(holds)), held))
    kept = Proportion(holds.astype(np.float64))
    early = _find_premature_acceptances(f, f_q, starts, points, target[persons], before)
    of_people = np.full(len(people), np.nan)
    for letter in reversed(np.flatnonzero(~np.isnan(early))):  # The first letter of each person that holds comes last.
        of_people[place[letter]] = early[letter]
    premature = Proportion(of_people)
    told = set(people.tolist())
    silent = [row for row in torch.nonzero(~accepted).flatten().tolist() if row not in told]
    return IssuedAdvice(
        promised=len(people),
        kept=int(holds.sum()),
        kept_before=int(held.sum()),
        refused=tuple(people[~holds].tolist()),
        broken=tuple(people[held & ~holds].tolist()),
        validity_drop=evaluate_statistic(broken),
        kept_rate=evaluate_statistic(kept),
        premature_validity=evaluate_statistic(premature),
        ci95=bootstrap_intervals(
            {"validity_drop": broken, "kept_rate": kept, "premature_validity": premature},
            resamples=protocol.resamples,
            seed=seed,
            level=protocol.level,
        ),
        letters=outcomes,
        joined_by=letters.joined_by,
        accepted_already=int(accepted[persons].sum()),
        unmatched=letters.unmatched,
        without_key=letters.without_key,
        without_letter=tuple(str(row) if letters.keys is None else letters.keys[row] or f"row {row}" for row in silent),
        groups={
            attribute: evaluate_advice_groups(members, people, broken, protocol, seed) for attribute, members in (groups or {}).items()
        },
        remarks=letters.remarks,
        notes=letters.notes,
    )


def _find_premature_acceptances(
    f: Predictor, f_q: Predictor, starts: Tensor, points: Tensor, target: Tensor, granted: NDArray[np.bool_]
) -> Floats:
    """Return 1 where f_q accepts at the last step from row to advice that f refuses, else 0, and NaN where f refuses no step or the end."""
    last_refused, refuses = starts.clone(), torch.zeros(len(starts), dtype=torch.bool)
    for step in range(LETTER_STEPS):
        between = torch.lerp(starts, points, step / LETTER_STEPS)
        refused = decide_points(f, between) != target
        last_refused[refused] = between[refused]
        refuses |= refused
    return premature_acceptances(decide_points(f_q, last_refused), target, granted & refuses.numpy())


def _list(entries: Sequence[Any]) -> str:
    shown = ", ".join(map(str, entries[:SHOWN_KEYS]))
    more = len(entries) - SHOWN_KEYS
    return f"{shown} and {more} more" if more > 0 else shown
