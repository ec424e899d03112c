"""The sections of a report in the order in which they are read, for every form of it.

Terminal, Markdown, JSON and HTML show the same sections: verdict, who is affected, what it costs them, groups, all measures, what was
checked, and where each figure belongs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cfptq.auditing.findings import AuditFindings
from cfptq.auditing.gate import Gate, Ruling
from cfptq.auditing.group_metrics import GroupMetrics
from cfptq.auditing.recourse_proof import RecourseProof
from cfptq.auditing.tables import list_measures
from cfptq.auditing.wording import (
    format_cost,
    format_count,
    format_percent,
    format_percent_interval,
    format_percent_range,
)
from cfptq.io.printable import escape_unprintable
from cfptq.metrics import Disparity

#: Fewest people of a group or feature that a report without personal rows breaks down.
SMALLEST_SHOWN = 10

#: Where a figure belongs. Pointers to provisions, not legal advice.
POINTERS = (
    (
        "Validity Drop, letters kept",
        "Do the steps that people were told still lead to acceptance?",
        "ECOA / Regulation B, 12 CFR 1002.9(b)(2): principal reasons in an adverse action notice. "
        "GDPR Art. 22(3): contesting a decision. EU AI Act Art. 86: explanation of a decision.",
    ),
    (
        "Boundary disagreement, crossing shift",
        "Is the new model the same decision rule near the boundary?",
        "SR 11-7, sections IV and V: testing and ongoing monitoring of a model change.",
    ),
    (
        "Recourse gap, recourse lost",
        "Does the change ask more of refused people?",
        "SR 11-7, section V: outcomes analysis. EU AI Act Art. 26 and 27: monitoring by deployers, impact on fundamental rights.",
    ),
    (
        "Drift of the favourable rate, factual flips",
        "Does the change accept other people?",
        "SR 11-7, section V: comparison of outcomes before and after a model change.",
    ),
    (
        "Groups and their gaps",
        "Does the change fall on one group?",
        "ECOA, 15 U.S.C. 1691, and Regulation B, 12 CFR 1002.4 and 1002.6(a): discrimination, the effects test (disparate impact). "
        "GDPR Art. 5(1)(a): fairness.",
    ),
    (
        "Digests, versions, seed, what was not checked",
        "Can somebody else repeat this?",
        "SR 11-7, section VI: documentation. EU AI Act Art. 11 and 12: technical documentation and records.",
    ),
)
TERMS = (
    ("Adverse action notice", "Here a letter (issued advice). Its principal reasons are the changes that it asks for."),
    ("Model change", "The replacement of the first model by the second, such as its quantized form."),
    ("Recourse", "A change that a refused person can make and that leads to acceptance."),
    ("Disparate impact", "A gap between groups. The groups' table shows it for recourse."),
)


LETTER_GROUP_HEADERS = ("Group", "With letters", "Held on the first model", "Refused again", "Share", "Interval")
GROUP_HEADERS = (
    "Group", "People", "Measured", "With recourse", "Validity Drop", "Interval", "Boundary disagreement", "Recourse gap", "Drift",
    "Accuracy",
)  # fmt: skip
#: Names of digests and of facts about the run, as a reader knows them.
DIGESTS = {"people": "People as the models see them", "letters": "Letters as the models see them", "action set": "Action set"}
RUNTIME = {
    "processor": "Processor",
    "int8_saturates": "8-bit products overflow here in ONNX Runtime's default session",
    "onnxruntime": "ONNX Runtime",
    "session.x64quantprecision": "Option session.x64quantprecision of these runs (1 rules overflow out)",
    "cfptq": "cfptq",
    "torch": "PyTorch",
    "python": "Python",
}


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        headers: Names of the columns.
        rows: Cells.
        numeric: Places of the columns that are aligned to the right.
        caption: What the table shows.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        name: Key of the section in JSON, and anchor in HTML.
        title: Heading.
        sentences: What it says in words.
        grids: Tables below.
    """

    name: str
    title: str
    sentences: tuple[str, ...]
    grids: tuple[Grid, ...] = ()


def build_sections(
    report: AuditFindings,
    gate: Gate | None = None,
    include_people: bool = False,
    names_people: bool | None = None,
    include_small_groups: bool | None = None,
) -> tuple[Section, ...]:
    """Return the sections of a report.

    Args:
        report: The report.
        gate: Its outcome against limits. None states no limit.
        include_people: Show a row for each person affected.
        names_people: Name a few people by their keys or rows in sentences. ``include_people`` by default.
        include_small_groups: Show groups and features of any number of people. ``include_people`` by default.
    """
    names_people = include_people if names_people is None else names_people
    smallest = 0 if (include_people if include_small_groups is None else include_small_groups) else SMALLEST_SHOWN
    sections = (
        Section("verdict", "Verdict", describe_verdict(report, gate), _grid_of_limits(gate)),
        Section("affected", "Who is affected", *_describe_affected(report, include_people, names_people, smallest)),
        Section("cost", "What it costs them now", _describe_cost(report)),
        Section("groups", "Groups", *_describe_groups(report, smallest)),
        Section("measures", "All measures", _describe_counts(report), (_grid_of_measures(report),)),
        *_describe_robustness(report),
        Section("checked", "What was checked and what was not", _describe_checks(report), (_grid_of_facts(report),)),
        Section(
            "pointers",
            "Where each figure belongs",
            ("These are pointers to where an analyst looks first. They are not legal advice.",),
            (
                Grid(("Figure", "Question", "Provision"), POINTERS, caption="Figures and provisions"),
                Grid(("Term of the field", "Here"), TERMS, caption="Terms"),
            ),
        ),
    )
    return tuple(_make_printable(section) for section in sections)


def _make_printable(section: Section) -> Section:
    """Return a section whose text from data holds nothing that a terminal would obey."""
    grids = tuple(
        Grid(
            tuple(map(escape_unprintable, grid.headers)),
            tuple(tuple(map(escape_unprintable, row)) for row in grid.rows),
            grid.numeric,
            escape_unprintable(grid.caption),
        )
        for grid in section.grids
    )
    return Section(section.name, section.title, tuple(map(escape_unprintable, section.sentences)), grids)


def describe_verdict(report: AuditFindings, gate: Gate | None) -> tuple[str, ...]:
    """Return the verdict in words and counts, the outcome of the limits first."""
    sentences = []
    rulings = gate.rulings if gate is not None else ()
    if gate is not None and rulings:
        bound = "" if gate.level is None else f" Judged by the farther end of the {100 * gate.level:g} % intervals."
        broken = sum(ruling.outcome == "broken" for ruling in rulings)
        unjudged = sum(ruling.outcome == "not judged" for ruling in rulings)
        words = {
            "kept": f"Kept: {_all_of(len(rulings))}.",
            "broken": f"Not kept: {broken} of {format_count(len(rulings), 'limits')} broken.",
            "not judged": f"Not judged: {unjudged} of {format_count(len(rulings), 'limits')} could not be judged.",
        }
        sentences.append(words[gate.outcome] + bound)
    else:
        sentences.append("No limit was set.")
    of_option = {ruling.option: ruling for ruling in rulings}
    sentences.append(f"{_describe_headline(report)}{_end(of_option.get('max_vd'))}")
    sentences.extend(f"{_describe_ruling(ruling)}{_end(ruling)}" for ruling in rulings if ruling.option != "max_vd")
    if report.issued is not None:
        never, promised = report.issued.promised - report.issued.kept_before, report.issued.promised
        if never:
            sentences.append(
                f"Of {format_count(promised, 'people')} with letters, {never:,} would be refused by {report.model_names[0]} itself after "
                "doing what their letter says. They are left out of the share above."
            )
    return tuple(sentences)


def _all_of(count: int) -> str:
    return "the limit holds" if count == 1 else f"all {count} limits hold"


def _describe_headline(report: AuditFindings) -> str:
    level, advice, metrics = report.protocol.level, report.issued, report.metrics
    first, second = report.model_names
    if advice is not None:
        total, broken, share, interval = advice.kept_before, len(advice.broken), advice.validity_drop, advice.ci95["validity_drop"]
        whom = f"people who were told what to change and whom {first} accepts after doing it"
    else:
        total, broken = metrics.counts["with_recourse"], len(metrics.broken)
        share, interval = metrics.validity_drop, metrics.ci95["validity_drop"]
        whom = f"people who were refused by {first} and for whom a change was computed that it accepts (recourse)"
    if total == 0:
        return f"There are no {whom}, so nothing can be said about promises."
    return (
        f"Of {total:,} {whom}, {broken:,} ({format_percent(share)}; {format_percent_interval(interval, level)}) would be refused again by "
        f"{second} after doing it."
    )


def _describe_ruling(ruling: Ruling) -> str:
    finding, (low, high) = ruling.finding, ruling.finding.interval
    meaning = f" ({finding.meaning})" if finding.meaning else ""
    words = f"{finding.name}{meaning}: {format_percent(finding.value)}"
    return f"{words}." if math.isnan(low) else f"{words}, interval {100 * low:.1f} to {100 * high:.1f} %."


def _end(ruling: Ruling | None) -> str:
    if ruling is None:
        return ""
    outcome = {"kept": "Kept", "broken": "Not kept", "not judged": "Not judged, because the value is undefined"}[ruling.outcome]
    return f" Limit: {100 * ruling.limit:g} %. {outcome}."


def _grid_of_limits(gate: Gate | None) -> tuple[Grid, ...]:
    if gate is None or not gate.rulings:
        return ()
    rows = tuple(
        (
            ruling.finding.name,
            format_percent(ruling.finding.value),
            format_percent_range(ruling.finding.interval),
            f"{100 * ruling.limit:g} %",
            ruling.outcome,
        )
        for ruling in gate.rulings
    )
    return (Grid(("Measure", "Value", "Interval", "Limit", "Outcome"), rows, (1, 2, 3), "Limits"),)


def _describe_affected(
    report: AuditFindings, include_people: bool, names_people: bool, smallest: int
) -> tuple[tuple[str, ...], tuple[Grid, ...]]:
    people, advice = report.consequences.people, report.issued
    count = len(advice.broken if advice is not None else report.broken)
    done = "doing what they were told" if advice is not None else "making the change that was computed for them"
    sentences = [f"{format_count(count, 'people') if count else 'Nobody'} would be refused again after {done}."]
    if advice is not None:
        sentences.append(f"{advice.kept:,} of {format_count(advice.promised, 'people')} with letters still get what they were promised.")
        sentences.extend(advice.findings(names_people))
    grids: list[Grid] = []
    shown = [entry for entry in report.consequences.features if entry.told >= smallest]
    if shown:
        rows = tuple((entry.feature, str(entry.told), str(entry.broken), format_percent(entry.broken / entry.told)) for entry in shown)
        grids.append(Grid(("Feature", "People who change it", "Refused again", "Share"), rows, (1, 2, 3), "By the features that change"))
    hidden = len(report.consequences.features) - len(shown)
    if hidden:
        sentences.append(f"Left out of the breakdown: {format_count(hidden, 'features')} with fewer than {SMALLEST_SHOWN} people.")
    if include_people and people:
        persons = tuple(
            (person.key or f"row {person.row}", person.told, "refused again", format_cost(person.cost_told), format_cost(person.cost_now))
            for person in people
        )
        change = "Told" if advice is not None else "Computed change"
        grids.append(Grid(("Person", change, "Outcome", "Its cost", "Cost now"), persons, (3, 4), "People affected"))
    elif people:
        sentences.append("Single people are left out. They are shown where they are asked for (include_people, --include-people).")
    return tuple(sentences), tuple(grids)


def _describe_cost(report: AuditFindings) -> tuple[str, ...]:
    people, (first, second) = report.consequences.people, report.model_names
    sentences = []
    now = sorted(person.cost_now for person in people if not math.isnan(person.cost_now))
    told = sorted(person.cost_told for person in people if not math.isnan(person.cost_told))
    if now:
        what = "What they were told" if report.issued is not None else "The change that was computed for them"
        before = f" {what} costs a median of {format_cost(told[len(told) // 2])}." if told else ""
        sentences.append(
            f"The cheapest change that {second} accepts costs the people affected a median of {format_cost(now[len(now) // 2])}.{before}"
        )
    if people and len(now) < len(people):
        sentences.append(f"For {len(people) - len(now):,} of them no change was found that {second} accepts.")
    gap, lost = report.recourse_gap, report.recourse_lost_rate
    if not math.isnan(gap):
        sentences.append(
            f"Over all refused people who were measured, affected or not, the cheapest change that leads to acceptance costs "
            f"{abs(100 * gap):.1f} % {'more' if gap >= 0 else 'less'} on {second} than on {first}, on average. "
            f"{format_percent(lost)} of those who had such a change have none any more."
        )
    if not sentences:
        return ("What acceptance costs on the second model was not computed.",)
    return (*sentences, "A cost counts how far features move, in the units and weights that the action set declares.")


def _describe_groups(report: AuditFindings, smallest: int) -> tuple[tuple[str, ...], tuple[Grid, ...]]:
    if not report.groups:
        return ("No groups were given, so that disparate impact (one group hit harder than another) was not examined.",), ()
    sentences: list[str] = []
    grids: list[Grid] = []
    for attribute, grouping in report.groups.items():
        if report.issued is not None:
            letters = report.issued.groups[attribute]
            sentences.append(_describe_worst(f"By {attribute}, letters", "share of broken letters", letters.validity_drop))
            told = {name: group for name, group in letters.groups.items() if group.kept_before >= smallest}
            sentences.extend(_describe_hidden(f"By {attribute}, letters", len(letters.groups) - len(told)))
            outcomes: tuple[tuple[str, ...], ...] = tuple(
                (
                    name,
                    str(group.promised),
                    str(group.kept_before),
                    str(group.broken),
                    format_percent(group.validity_drop),
                    format_percent_range(group.ci95),
                )
                for name, group in told.items()
            )
            grids.append(Grid(LETTER_GROUP_HEADERS, outcomes, tuple(range(1, 6)), f"Letters by {attribute}"))
        label = f"By {attribute}" if report.issued is None else f"By {attribute}, computed changes"
        sentences.append(_describe_worst(label, "Validity Drop", grouping.validity_drop))
        shown = {name: group for name, group in grouping.groups.items() if group.with_recourse >= smallest}
        sentences.extend(_describe_hidden(label, len(grouping.groups) - len(shown)))
        rows = tuple(_row_of_group(name, group) for name, group in shown.items())
        # Accuracy is the last column, and nobody needs it without labels.
        columns = len(GROUP_HEADERS) - (report.fp32.get("accuracy") is None)
        grids.append(Grid(GROUP_HEADERS[:columns], tuple(row[:columns] for row in rows), tuple(range(1, columns)), label))
    return tuple(sentences), tuple(grids)


def _describe_worst(label: str, measure: str, disparity: Disparity) -> str:
    """Say which group has the largest value, and how far the groups lie apart."""
    if disparity.worst_group is None:
        return f"{label}: no group has enough people to name the worst."
    if math.isnan(disparity.gap):
        gap = "No other group has enough people to compare, so the gap between groups is undefined."
    else:
        gap = f"The gap between groups is {format_percent(disparity.gap)}."
    if disparity.worst == 0:
        return f"{label}: the {measure} is 0 in every group with enough people. {gap}"
    return f"{label}: the largest {measure} is that of {disparity.worst_group}, {format_percent(disparity.worst)}. {gap}"


def _describe_hidden(label: str, hidden: int) -> list[str]:
    if not hidden:
        return []
    return [f"{label}, not shown: {format_count(hidden, 'groups')} with fewer than {SMALLEST_SHOWN} people to judge by."]


def _row_of_group(name: str, group: GroupMetrics) -> tuple[str, ...]:
    return (
        name,
        str(group.rows),
        str(group.people),
        str(group.with_recourse),
        format_percent(group.validity_drop),
        format_percent_range(group.ci95["validity_drop"]),
        format_percent(group.values["boundary_disagreement"]),
        format_percent(group.recourse_gap, True),
        format_percent(group.values["favourable_rate_drift"], True),
        format_percent(group.values["accuracy"]),
    )


def _describe_counts(report: AuditFindings) -> tuple[str, ...]:
    counts, (first, second) = report.metrics.counts, report.model_names
    sentences = [
        f"{first} refuses {counts['rejected']:,} of {format_count(counts['rows'], 'people')} in the table. Measured were "
        f"{counts['people']:,} of them: a change that {first} accepts, called recourse, was searched and found for "
        f"{counts['with_recourse']:,}."
    ]
    if report.issued is not None:
        sentences.append("The first three rows are about the letters. All others are about this computed recourse.")
    if counts["direction_undefined"]:
        sentences.append(
            f"Direction similarity leaves out {format_count(counts['direction_undefined'], 'people')}, of whom one of the models asks "
            "for no change."
        )
    if counts["without_crossing"]:
        sentences.append(
            f"{second} does not change its decision within four steps of the last one for "
            f"{format_count(counts['without_crossing'], 'people')}. They count as four steps in the crossing shift."
        )
    return tuple(sentences)


def _grid_of_measures(report: AuditFindings) -> Grid:
    rows, parent = [], ""
    for row in list_measures(report.metrics, report.fp32, report.issued):
        is_part = row.label.startswith(" ")
        parent = parent if is_part else row.label
        label = f"{parent}: {row.label.strip()}" if is_part else row.label
        rows.append((label, row.value, row.interval, row.meaning))
    headers = ("Measure", "Value", f"{100 * report.protocol.level:g} % interval", "Meaning")
    return Grid(headers, tuple(rows), (1, 2), "All measures")


def _describe_robustness(report: AuditFindings) -> tuple[Section, ...]:
    """Return the section of estimates and proofs, or none if they were not asked for."""
    found, (first, second) = report.robustness, report.model_names
    if found is None:
        return ()
    sentences = [
        f"These figures are about {found.count:,} points that {found.about} lead to and that {first} accepts.",
        "Observed: the model was run there. Estimated: computed from samples or slopes nearby, and possibly wrong. Proven: it cannot be "
        "otherwise for the points counted, and nothing is said about the others.",
        f"A deviation is the distance between the point that was advised and the point that a person reaches, in the columns that the "
        f"models see, here at most {found.radius:g}. "
        "A proof is about the file's computation in float32 without overflow of 8-bit products.",
        *found.obstacles,
    ]
    estimate = found.estimate
    within, logits = f"for every deviation of at most {found.radius:g}", "logits"
    share = [
        (f"{second} accepts the point", "observed", 1 - estimate.failed),
        (f"{second} accepts the point, in any order of float sums", "proven", _get_fraction(found.at_point)),
        (f"{second} accepts {within}", "proven", _get_fraction(found.around)),
        (f"{first} accepts {within}", "proven", _get_fraction(found.around_before)),
        (f"Both accept {within}", "proven", found.proven_on_both),
        ("At risk: the margin is at most twice the change of logits that was measured nearby (eq. 64)", "estimated", estimate.risk),
        ("At risk by the first-order estimate of that change (eq. 66)", "estimated", estimate.first_order_risk),
    ]
    rows = [(label, kind, format_percent(value)) for label, kind, value in share]
    quantiles = (("95 % of the points", 0.95), ("all points", 1.0))
    rows.extend(
        (f"Change of logits at {name} is at most (eq. 62)", "estimated", f"{estimate.epsilon_quantile(at):.3g} {logits}")
        for name, at in quantiles
    )
    grid = Grid(("Statement", "Kind", "Value"), tuple(rows), (2,), "Estimates and proofs")
    return (Section("robustness", "Estimates and proofs", tuple(sentences), (grid,)),)


def _get_fraction(proof: RecourseProof | None) -> float:
    return math.nan if proof is None else proof.fraction


def _describe_checks(report: AuditFindings) -> tuple[str, ...]:
    first, second = report.model_names
    checked = (
        f"Checked: each letter was run through {first} and {second} as it was sent."
        if report.issued is not None
        else f"Checked: no letters were given, so changes that {first} accepts were computed and run through {second}."
    )
    return (
        checked,
        "Not checked: whether people can really make a change, whether the change causes what the data show, and people who are not in "
        "the table.",
        *report.readings,
        *report.notes,
    )


def _grid_of_facts(report: AuditFindings) -> Grid:
    facts: list[tuple[str, Any]] = []
    for label, model in (("First model", report.full_precision), ("Second model", report.quantized)):
        facts.append((label, model.name))
        facts.append((f"{label}, SHA-256", model.sha256 or "not a file"))
    facts.extend((f"{DIGESTS.get(name, name)}, SHA-256", digest) for name, digest in report.digests.items())
    facts.append(("Seed of the draw of people, the searches and the intervals", report.seed))
    facts.extend((RUNTIME.get(name, name), value) for name, value in report.runtime.items())
    return Grid(("What", "Value"), tuple((str(name), _as_text(value)) for name, value in facts), caption="Models, data and versions")


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def format_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return sections as Markdown, with text from data escaped."""
    lines = [f"# {_escape(title)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for sentence in section.sentences:
            lines += [_escape(sentence), ""]
        for grid in section.grids:
            if grid.caption and len(section.grids) > 1:
                lines += [f"### {_escape(grid.caption)}", ""]
            lines.append(f"| {' | '.join(map(_escape, grid.headers))} |")
            lines.append("|" + "|".join(" ---: " if place in grid.numeric else " --- " for place in range(len(grid.headers))) + "|")
            lines += [f"| {' | '.join(map(_escape, row))} |" for row in grid.rows]
            lines.append("")
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Escape what Markdown or HTML within it would read as markup."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character if character not in "<>" else {"<": "&lt;", ">": "&gt;"}[character])
    return " ".join(text.split())
