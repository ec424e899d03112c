"""The sections of a report in the order in which they are read, for every form of it.

Terminal, Markdown, JSON and HTML show the same sections: verdict, who is affected, what it costs them, groups, all measures, what was
checked, and where each figure belongs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cfptq.auditing.evaluation import GroupMetrics
from cfptq.auditing.findings import AuditFindings
from cfptq.auditing.gate import Gate, Ruling
from cfptq.auditing.tables import format_interval, format_number, list_measures
from cfptq.metrics import Interval

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
    report: AuditFindings, gate: Gate | None = None, include_people: bool = False, names_people: bool | None = None
) -> tuple[Section, ...]:
    """Return the sections of a report.

    Args:
        report: The report.
        gate: Its outcome against limits. None states no limit.
        include_people: Show a row for each person affected, and groups of any size.
        names_people: Name a few people by their keys or rows in sentences. ``include_people`` by default.
    """
    names_people = include_people if names_people is None else names_people
    return (
        Section("verdict", "Verdict", describe_verdict(report, gate), _grid_of_limits(gate)),
        Section("affected", "Who is affected", *_describe_affected(report, include_people, names_people)),
        Section("cost", "What it costs them now", _describe_cost(report)),
        Section("groups", "Groups", *_describe_groups(report, include_people)),
        Section("measures", "All measures", (_describe_counts(report),), (_grid_of_measures(report),)),
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


def format_percent(value: float) -> str:
    """Return a share as a percentage with one decimal, or more below 0.1 %."""
    if math.isnan(value):
        return "undefined"
    percent = 100 * value
    return f"{percent:.1f} %" if abs(percent) >= 0.1 or percent == 0 else f"{percent:.2g} %"


def format_percent_interval(interval: Interval, level: float) -> str:
    """Return an interval of a share in words."""
    low, high = interval
    if math.isnan(low):
        return "no interval"
    return f"{100 * level:g} % interval {100 * low:.1f} to {100 * high:.1f} %"


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
            "broken": f"Not kept: {broken} of {len(rulings)} limits broken.",
            "not judged": f"Not judged: {unjudged} of {len(rulings)} limits could not be judged.",
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
                f"For {never} of {promised} people with letters, {report.model_names[0]} itself would refuse them after doing it."
            )
    return tuple(sentences)


def _all_of(count: int) -> str:
    return "the limit holds" if count == 1 else f"all {count} limits hold"


def _describe_headline(report: AuditFindings) -> str:
    level, advice, metrics = report.protocol.level, report.issued, report.metrics
    if advice is not None:
        total, broken, share, interval = advice.kept_before, len(advice.broken), advice.validity_drop, advice.ci95["validity_drop"]
        whom = f"people who were told what to change and whom {report.model_names[0]} accepts after doing it"
    else:
        total, broken = metrics.counts["with_recourse"], len(metrics.broken)
        share, interval = metrics.validity_drop, metrics.ci95["validity_drop"]
        whom = f"people who were refused and for whom recourse on {report.model_names[0]} was computed"
    if total == 0:
        return f"There are no {whom}, so nothing can be said about promises."
    return (
        f"Of {total} {whom}, {broken} ({format_percent(share)}; {format_percent_interval(interval, level)}) would be refused again by "
        f"{report.model_names[1]} after doing it."
    )


def _describe_ruling(ruling: Ruling) -> str:
    low, high = ruling.finding.interval
    words = f"{ruling.finding.name}: {format_percent(ruling.finding.value)}"
    return f"{words}." if math.isnan(low) else f"{words} (interval {100 * low:.1f} to {100 * high:.1f} %)."


def _end(ruling: Ruling | None) -> str:
    if ruling is None:
        return ""
    return f" Limit: {100 * ruling.limit:g} %. {({'kept': 'Kept', 'broken': 'Not kept', 'not judged': 'Not judged'})[ruling.outcome]}."


def _grid_of_limits(gate: Gate | None) -> tuple[Grid, ...]:
    if gate is None or not gate.rulings:
        return ()
    rows = tuple(
        (
            ruling.finding.name,
            format_number(ruling.finding.value),
            format_interval(ruling.finding.interval),
            f"{ruling.limit:g}",
            ruling.outcome,
        )
        for ruling in gate.rulings
    )
    return (Grid(("Measure", "Value", "Interval", "Limit", "Outcome"), rows, (1, 2, 3), "Limits"),)


def _describe_affected(report: AuditFindings, include_people: bool, names_people: bool) -> tuple[tuple[str, ...], tuple[Grid, ...]]:
    people = report.consequences.people
    count = len(report.issued.broken if report.issued is not None else report.broken)
    sentences = [f"{count} people would be refused again after doing what they were told." if count else "Nobody is affected."]
    advice = report.issued
    if advice is not None:
        sentences.append(f"{advice.kept} of {advice.promised} people with letters still get what they were promised.")
        sentences.extend(advice.findings(names_people))
    grids: list[Grid] = []
    shown = [entry for entry in report.consequences.features if include_people or entry.told >= SMALLEST_SHOWN]
    if shown:
        rows = tuple((entry.feature, str(entry.told), str(entry.broken), format_percent(entry.broken / entry.told)) for entry in shown)
        caption = "By the features that people were told to change"
        grids.append(Grid(("Feature", "Told to change it", "Refused again", "Share"), rows, (1, 2, 3), caption))
    hidden = len(report.consequences.features) - len(shown)
    if hidden:
        sentences.append(f"{hidden} features with fewer than {SMALLEST_SHOWN} people are not broken down.")
    if include_people and people:
        persons = tuple(
            (person.key or f"row {person.row}", person.told, "refused again", format_cost(person.cost_told), format_cost(person.cost_now))
            for person in people
        )
        grids.append(Grid(("Person", "Told", "Outcome", "Cost told", "Cost now"), persons, (3, 4), "People affected"))
    elif people:
        sentences.append("Single people are left out. They are shown where they are asked for (include_people, --include-people).")
    return tuple(sentences), tuple(grids)


def format_cost(value: float) -> str:
    """Return a cost with three significant digits, or a dash if there is none."""
    return "-" if math.isnan(value) else f"{value:.3g}"


def _describe_cost(report: AuditFindings) -> tuple[str, ...]:
    people = report.consequences.people
    sentences = []
    now = sorted(person.cost_now for person in people if not math.isnan(person.cost_now))
    told = sorted(person.cost_told for person in people if not math.isnan(person.cost_told))
    if now:
        before = f" What they were told cost a median of {format_cost(told[len(told) // 2])}." if told else ""
        sentences.append(
            f"The cheapest change that {report.model_names[1]} accepts costs the people affected a median of "
            f"{format_cost(now[len(now) // 2])}, in units of the action set's cost.{before}"
        )
    if people and len(now) < len(people):
        sentences.append(f"For {len(people) - len(now)} of them no change that {report.model_names[1]} accepts was found.")
    gap, lost = report.recourse_gap, report.recourse_lost_rate
    if not math.isnan(gap):
        sentences.append(
            f"Over everybody measured, the cheapest recourse costs {abs(100 * gap):.1f} % {'more' if gap >= 0 else 'less'} on average, and "
            f"{format_percent(lost)} of people have no recourse left."
        )
    return tuple(sentences) or ("The cost of recourse on the new model was not computed.",)


def _describe_groups(report: AuditFindings, include_people: bool) -> tuple[tuple[str, ...], tuple[Grid, ...]]:
    if not report.groups:
        return ("No groups were given, so that disparate impact was not examined.",), ()
    sentences, grids = [], []
    for attribute, grouping in report.groups.items():
        worst, gap = grouping.validity_drop, grouping.validity_drop.gap
        if worst.worst_group is None:
            sentences.append(f"By {attribute}: no group has enough people with recourse to name the worst.")
        else:
            known = len(grouping.groups) - len(grouping.too_small) > 1
            words = f"The gap between groups is {format_percent(gap)}." if known else "No other group has enough people to compare."
            sentences.append(
                f"By {attribute}: the largest Validity Drop is that of {worst.worst_group}, {format_percent(worst.worst)}. {words}"
            )
        shown = {name: group for name, group in grouping.groups.items() if include_people or group.with_recourse >= SMALLEST_SHOWN}
        hidden = len(grouping.groups) - len(shown)
        if hidden:
            sentences.append(f"By {attribute}: {hidden} groups with recourse for fewer than {SMALLEST_SHOWN} people are not shown.")
        headers = (
            "Group",
            "Rows",
            "Measured",
            "With recourse",
            "Boundary disagreement",
            "Validity Drop",
            "Interval",
            "Recourse gap",
            "Drift",
        )
        rows = tuple(_row_of_group(name, group) for name, group in shown.items())
        grids.append(Grid(headers, rows, tuple(range(1, len(headers))), f"By {attribute}"))
    return tuple(sentences), tuple(grids)


def _row_of_group(name: str, group: GroupMetrics) -> tuple[str, ...]:
    return (
        name,
        str(group.rows),
        str(group.people),
        str(group.with_recourse),
        format_number(group.values["boundary_disagreement"]),
        format_number(group.validity_drop),
        format_interval(group.ci95["validity_drop"]),
        format_number(group.recourse_gap, True),
        format_number(group.values["favourable_rate_drift"], True),
    )


def _describe_counts(report: AuditFindings) -> str:
    counts = report.metrics.counts
    return (
        f"{counts['rows']} rows, {counts['rejected']} rejected, {counts['people']} measured, {counts['with_recourse']} with recourse. "
        f"Direction undefined for {counts['direction_undefined']}. "
        f"The quantized model has no boundary near the last step of {counts['without_crossing']}."
    )


def _grid_of_measures(report: AuditFindings) -> Grid:
    rows, parent = [], ""
    for row in list_measures(report.metrics, report.fp32, report.issued):
        is_part = row.label.startswith(" ")
        parent = parent if is_part else row.label
        label = f"{parent}: {row.label.strip()}" if is_part else row.label
        rows.append((label, row.value, row.interval, row.meaning))
    headers = ("Measure", "Value", f"{100 * report.protocol.level:g} % interval", "Meaning")
    return Grid(headers, tuple(rows), (1, 2), "All measures")


def _describe_checks(report: AuditFindings) -> tuple[str, ...]:
    checked = (
        "Letters were run through both models as they were sent."
        if report.issued is not None
        else "No letters were given. Recourse was computed on the first model and run through the second."
    )
    return (
        checked,
        "Not checked: whether people can really make a change, whether it causes what the data show, and people who are not in the table.",
        *report.notes,
    )


def _grid_of_facts(report: AuditFindings) -> Grid:
    facts: list[tuple[str, Any]] = []
    for label, model in (("First model", report.full_precision), ("Second model", report.quantized)):
        facts.append((label, model.name))
        facts.append((f"{label}, SHA-256", model.sha256 or "not a file"))
    facts.extend((f"{name}, SHA-256", digest) for name, digest in report.digests.items())
    facts.append(("Seed", report.seed))
    facts.extend((name, value) for name, value in report.runtime.items())
    return Grid(("What", "Value"), tuple((str(name), _as_text(value)) for name, value in facts), caption="Models, data and versions")


def _as_text(value: Any) -> str:
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
