"""Audits as an analyst runs them: other tools' files, a retrained tree ensemble, and findings re-checked by the exact solver.

Each data set's development network is quantized by ONNX Runtime (int8, int4), Neural Compressor (int8) and ``faithful`` (4 average bits).
Its test people are written as CSV with a key, and letters as the full-precision model would have sent them: the cheapest recourse at a
probability of 0.55, to every person measured. ``cfptq audit`` then compares all ONNX files in one command. Neural Compressor's model is
no file that ONNX Runtime runs, so it is audited by ``cfptq.audit``.

The tree ensemble is scikit-learn's gradient boosting as skl2onnx exports it, against the same trained on another draw of the training
rows. It has no gradient, so recourse is searched without one.

The exact solver answers the question of the audit's search anew for the first people measured, on the full-precision network and on
``faithful``'s: it proves that there is recourse and what it costs at least, or that there is none.

    CFPTQ_DATA_DIR=... python benchmarks/audits.py            # all parts, some 10 minutes on two cores
    python benchmarks/audits.py --parts files --datasets compas
    python benchmarks/audits.py --show
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import reporting
import torch
from sklearn.ensemble import GradientBoostingClassifier

import cfptq
from cfptq.actions import ActionSet
from cfptq.auditing import Protocol, ReferenceRecourse, reference_recourse
from cfptq.backends.toolchains import deploy_toolchain
from cfptq.experiments.recipe import Experiment
from cfptq.network import Predictor, as_predictor
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.method_presets import METHODS
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.recourse import Exact, MinimalCost, RecourseBatch, Status, solve

OUT = reporting.RESULTS / "audits.json"
#: Data set -> development seed whose network is audited.
SEEDS = {"adult": 100, "bank": 100, "compas": 100, "default": 100, "german": 0}
#: Data set -> development seeds whose people are re-checked by the exact solver. One split of german holds too few rejected people.
EXACT_SEEDS = {"german": (0, 1), "compas": (100,)}
EXACT_PEOPLE, EXACT_SECONDS = 100, 10.0
TREES_DATASET = "default"
BUDGET, CALIBRATION_ROWS = 4.0, 1024
#: Probability at which the letters were sent.
CONFIDENCE = 0.55
LIMITS = {"max_vd": 0.02, "max_disagreement": 0.02, "max_crg": 0.05, "max_drift": 0.005}
FILES = ("ort-int8", "ort-int4", "faithful")
#: People of the tree ensemble's audit, whose search asks the model some thousand times a person.
TREES_PROTOCOL = Protocol(max_people=200, confidences=(0.5,))
#: Costs that differ by this share are the same.
SAME_COST = 1e-3
PARTS = ("files", "trees", "exact")

Entry = dict[str, Any]


# Other tools' files ----------------------------------------------------------------------------------------------------------------------


def audit_files(name: str, seed: int) -> Entry:
    """Audit the models of three tools and ours against one network, with letters."""
    experiment = reporting.load_experiment(name, seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        neural_compressor = write_models(experiment, seed, folder)
        people, letters = write_tables(experiment, folder)
        started = time.perf_counter()
        reports = run_command(folder)
        seconds = time.perf_counter() - started
        report = cfptq.audit(
            folder / "fp32.onnx", neural_compressor, people, experiment.action_set, issued=letters, id="person_id", progress=False
        )
        entries = {Path(each["models"]["quantized"]["name"]).stem: each for each in reports}
        entries["inc-int8"] = report.to_dict(report.gate(**LIMITS))
    return {
        "seed": seed,
        "network": experiment.network.to_dict(),
        "letters": len(letters),
        "seconds_of_the_command": round(seconds, 1),
        "models": {model: summarize(entries[model]) for model in ("ort-int8", "ort-int4", "inc-int8", "faithful")},
    }


def write_models(experiment: Experiment, seed: int, folder: Path) -> Predictor:
    """Write fp32.onnx and the files of ``FILES``, and return Neural Compressor's model."""
    columns = experiment.columns
    settings = TaskSettings(max_rows=CALIBRATION_ROWS, seed=seed, progress=False)
    task = build_task(experiment.model, [(columns.train, columns.train_labels)], experiment.action_set, settings)
    onnx.save(cfptq.network.to_onnx_model(task.network), folder / "fp32.onnx")
    for tool in ("ort-int8", "ort-int4"):
        deploy_toolchain(tool, task.network, task.rows, folder, task.decision)
    quantize_with(task, METHODS["faithful"], BUDGET, progress=False).to_onnx(folder / "faithful.onnx")
    return deploy_toolchain("inc-int8", task.network, task.rows, folder, task.decision)[0]


def write_tables(experiment: Experiment, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write people, letters and the action set, and return people and letters with keys."""
    action_set, rows = experiment.action_set, experiment.columns.test
    people = experiment.dataset.test.reset_index(drop=True)
    f = as_predictor(experiment.model, example=rows[:256])
    protocol = Protocol(minimal_cost=MinimalCost(confidence=CONFIDENCE))
    rejected = (f.logits(rows).argmax(1) != action_set.favourable).nonzero()[:, 0]
    chosen = rejected[: protocol.max_people]
    advice = solve(f, rows[chosen], action_set, target=experiment.dataset.favourable, method=protocol.minimal_cost, progress=False)
    letters = action_set.decode(advice.points)[advice.found.numpy()]
    number = chosen[advice.found].numpy()
    people.insert(0, "person_id", [f"P{row:06d}" for row in range(len(people))])
    letters.insert(0, "person_id", people["person_id"].to_numpy()[number])
    letters = letters.sample(frac=1, random_state=0).reset_index(drop=True)
    people.to_csv(folder / "people.csv", index=False)
    letters.to_csv(folder / "letters.csv", index=False)
    action_set.save(folder / "actions.yaml")
    return people, letters


def run_command(folder: Path) -> list[Entry]:
    """Run ``cfptq audit`` on all files in ``folder``, and return the reports it wrote."""
    limits = [word for option, limit in LIMITS.items() for word in (f"--{option.replace('_', '-')}", str(limit))]
    models = ["fp32.onnx", *(f"{name}.onnx" for name in FILES)]
    tables = ["--people", "people.csv", "--issued", "letters.csv", "--id", "person_id", "--action-set", "actions.yaml"]
    command = [sys.executable, "-m", "cfptq", "audit", *models, *tables, *limits, "--json", "report.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"cfptq audit ended with {done.returncode}: {done.stderr}")
    reports: list[Entry] = json.loads((folder / "report.json").read_text())["reports"]
    return reports


def summarize(report: Mapping[str, Any]) -> Entry:
    """Return the figures of a report's JSON form that the table shows."""
    metrics, issued = report["quantized"], report["issued"]
    names = ("validity_drop", "boundary_disagreement", "recourse_gap", "recourse_lost_rate", "favourable_rate_drift", "factual_flip_rate")
    return {
        "outcome": report["verdict"]["outcome"],
        "limits": {each["limit"]: each["outcome"] for each in report["verdict"]["limits"]},
        "metrics": {name: [metrics[name], *metrics["ci95"][name]] for name in names},
        "letters": None
        if issued is None
        else {
            "promised": issued["promised"],
            "kept_before": issued["kept_before"],
            "broken": issued["counts"]["broken"],
            "validity_drop": [issued["validity_drop"], *issued["ci95"]["validity_drop"]],
        },
        "people": metrics["counts"]["people"],
        "with_recourse": metrics["counts"]["with_recourse"],
        "remarks": [remark["kind"] for remark in report["remarks"]],
    }


# A tree ensemble -------------------------------------------------------------------------------------------------------------------------


def audit_trees() -> Entry:
    """Audit gradient boosting against the same trained on another draw of the rows."""
    from skl2onnx import to_onnx

    experiment = reporting.load_experiment(TREES_DATASET, SEEDS[TREES_DATASET])
    train, labels = experiment.columns.train.numpy(), experiment.columns.train_labels.numpy()
    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for draw in (0, 1):
            chosen = np.random.default_rng(draw).choice(len(train), len(train) * 4 // 5, replace=False)
            trees = GradientBoostingClassifier(random_state=0).fit(train[chosen], labels[chosen])
            paths.append(Path(temporary) / f"trees-{draw}.onnx")
            options = {id(trees): {"zipmap": False}}
            paths[-1].write_bytes(to_onnx(trees, train[:1].astype(np.float32), options=options, target_opset=17).SerializeToString())
        started = time.perf_counter()
        report = cfptq.audit(
            *paths,
            experiment.dataset.test,
            experiment.action_set,
            label=experiment.columns.test_labels.tolist(),
            protocol=TREES_PROTOCOL,
            progress=False,
        )
        seconds = time.perf_counter() - started
    gate = report.gate(max_vd=LIMITS["max_vd"], max_crg=LIMITS["max_crg"], max_drift=LIMITS["max_drift"])
    return {
        "dataset": TREES_DATASET,
        "rows_of_each_draw": len(train) * 4 // 5,
        "accuracy": [report.fp32["accuracy"], report.accuracy],
        "seconds": round(seconds, 1),
        "notes": report.metrics.notes,
        **summarize(report.to_dict(gate)),
    }


# The exact solver ------------------------------------------------------------------------------------------------------------------------


def check_by_exact_solver(name: str) -> Entry:
    """Compare the audit's search with the exact solver person by person, on the full-precision network and on ours."""
    before, after, left = [], [], EXACT_PEOPLE
    for seed in EXACT_SEEDS[name]:
        experiment = reporting.load_experiment(name, seed)
        columns, action_set = experiment.columns, experiment.action_set
        settings = TaskSettings(max_rows=CALIBRATION_ROWS, seed=seed, progress=False)
        task = build_task(experiment.model, [(columns.train, columns.train_labels)], action_set, settings)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "faithful.onnx"
            quantize_with(task, METHODS["faithful"], BUDGET, progress=False).to_onnx(path)
            ours = as_predictor(path, example=columns.test[:256])
            protocol = Protocol(max_people=left, confidences=(0.5,))
            reference = reference_recourse(
                task.predictor, columns.test, action_set, experiment.dataset.favourable, protocol, progress=False
            )
            before.append(compare_searches(task.predictor, reference, action_set))
            after.append(compare_searches(ours, reference, action_set))
        left -= len(reference.people)
        if left == 0:
            break
    return {"fp32": tally(pd.concat(before)), "faithful": tally(pd.concat(after)), "gap": compare_gaps(pd.concat(before), pd.concat(after))}


def compare_searches(model: Predictor, reference: ReferenceRecourse, action_set: ActionSet) -> pd.DataFrame:
    """Return found and cost by the audit's search and by the exact solver, a row for each person."""
    rows, target = reference.plain.factual, reference.plain.target

    def run(method: MinimalCost | Exact) -> RecourseBatch:
        return solve(model, rows, action_set, target=target, method=method, progress=False)

    audit, exact = run(MinimalCost()), run(Exact(time_limit=EXACT_SECONDS))
    assert exact.bound is not None
    return pd.DataFrame(
        {
            "audit_found": audit.found.tolist(),
            "audit_cost": audit.cost.tolist(),
            "status": [status.name.lower() for status in exact.statuses],
            "exact_found": exact.found.tolist(),
            "exact_cost": exact.cost.tolist(),
            "bound": exact.bound.tolist(),
        }
    )


def tally(people: pd.DataFrame) -> Entry:
    """Count how many of the audit's findings the exact solver confirms."""
    none = people.status.isin([Status.INFEASIBLE.name.lower(), Status.IMMUTABLE.name.lower()])
    free = people.status == Status.FAVOURABLE.name.lower()  # This model accepts them already, at no cost.
    both = people[people.audit_found & people.exact_found & ~free]
    ratio = both.audit_cost / both.exact_cost
    proven = both.status == Status.OPTIMAL.name.lower()
    return {
        "people": len(people),
        "status": {str(status): int(count) for status, count in people.status.value_counts().sort_index().items()},
        "accepted_already": int(free.sum()),
        "found_and_confirmed": int((people.audit_found & people.exact_found & ~free).sum()),
        "found_but_refuted": int((people.audit_found & none).sum()),
        "not_found_and_confirmed": int((~people.audit_found & none).sum()),
        "not_found_but_exists": int((~people.audit_found & people.exact_found).sum()),
        "cost_confirmed": int((ratio[proven] <= 1 + SAME_COST).sum()),
        "cost_proven": int(proven.sum()),
        "below_the_bound": int((both.audit_cost < both.bound * (1 - SAME_COST)).sum()),
        "mean_ratio": round(float(ratio.mean()), 6),
        "worst_ratio": round(float(ratio.max()), 6),
    }


def compare_gaps(before: pd.DataFrame, after: pd.DataFrame) -> Entry:
    """Return the recourse gap by the audit's search and by the exact solver, over the same people."""
    before, after = before.reset_index(drop=True), after.reset_index(drop=True)
    kept = before.audit_found & after.audit_found & before.exact_found & after.exact_found
    gaps = {who: float(((after[f"{who}_cost"] - before[f"{who}_cost"]) / before[f"{who}_cost"])[kept].mean()) for who in ("audit", "exact")}
    return {"people": int(kept.sum()), **{who: round(gap, 6) for who, gap in gaps.items()}}


# Tables ----------------------------------------------------------------------------------------------------------------------------------


def percent(ends: list[float | None], signed: bool = False) -> str:
    """Format a share and its interval in percent."""
    value, low, high = ends
    if value is None or low is None or high is None:
        return "–"
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def markdown(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of benchmarks/README.md."""
    heads = ("data set", "model", "letters", "broken, %", "BD, %", "CRG, %", "no recourse left, %", "drift, points", "limits broken")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for name, entry in content["files"].items():
        for number, (model, each) in enumerate(entry["models"].items()):
            metrics, letters = each["metrics"], each["letters"]
            cells = (
                name if number == 0 else "",
                model,
                f"{letters['broken']} of {letters['kept_before']}",
                percent(letters["validity_drop"]),
                percent(metrics["boundary_disagreement"]),
                percent(metrics["recourse_gap"], True),
                percent(metrics["recourse_lost_rate"]),
                percent(metrics["favourable_rate_drift"], True),
                ", ".join(name for name, outcome in each["limits"].items() if outcome == "broken") or "none",
            )
            yield f"| {' | '.join(cells)} |"
    limits = ", ".join(f"{option} {limit:g}" for option, limit in LIMITS.items())
    yield f"\nLimits: {limits}. max_vd is on the letters."
    trees = content["trees"]
    metrics, accuracy = trees["metrics"], " and ".join(f"{each:.4f}" for each in trees["accuracy"])
    yield (
        f"\nGradient boosting on {trees['dataset']} against itself trained on another draw of {trees['rows_of_each_draw']:,} rows, "
        f"{trees['people']} people, {trees['seconds']:.0f} s. Accuracy {accuracy}. Of {trees['with_recourse']} people who are told the "
        f"cheapest change, {percent(metrics['validity_drop'])} % would be refused again. Drift "
        f"{percent(metrics['favourable_rate_drift'], True)} points, flips {percent(metrics['factual_flip_rate'])} %. CRG is "
        f"{percent(metrics['recourse_gap'], True)} %, a mean over people some of whom needed next to nothing before. Boundary disagreement "
        "is undefined, because the search takes no steps.\n"
    )
    heads = ("data set", "model", "people", "accepted already", "found, confirmed", "found, refuted", "not found, confirmed",
             "not found, but exists", "cost proven least", "mean cost ratio", "worst", "CRG by audit, %", "CRG exact, %")  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for name, entry in content["exact"].items():
        for model in ("fp32", "faithful"):
            each = entry[model]
            gaps = (f"{100 * entry['gap'][who]:+.2f}" if model == "faithful" else "" for who in ("audit", "exact"))
            counts = ("people", "accepted_already", "found_and_confirmed", "found_but_refuted", "not_found_and_confirmed")
            cells = (
                name if model == "fp32" else "",
                model,
                *(str(each[count]) for count in counts),
                str(each["not_found_but_exists"]),
                f"{each['cost_confirmed']} of {each['cost_proven']}",
                f"{each['mean_ratio']:.4f}",
                f"{each['worst_ratio']:.3f}",
                *gaps,
            )
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--datasets", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    chosen = parser.parse_args()
    if chosen.show:
        print("\n".join(markdown(json.loads(OUT.read_text()))))
        return
    content: Entry = json.loads(OUT.read_text()) if OUT.exists() else {"schema": 1, "files": {}, "trees": {}, "exact": {}}
    content["runtime"] = describe_runtime()
    jobs: list[tuple[tuple[str, ...], Callable[..., Entry], tuple[Any, ...]]] = []
    if "exact" in chosen.parts:
        jobs += [(("exact", name), check_by_exact_solver, (name,)) for name in chosen.datasets if name in EXACT_SEEDS]
    if "trees" in chosen.parts:
        jobs.append((("trees",), audit_trees, ()))
    if "files" in chosen.parts:
        jobs += [(("files", name), audit_files, (name, SEEDS[name])) for name in chosen.datasets]
    with ProcessPoolExecutor(chosen.workers, initializer=start_worker) as pool:
        waiting = [(place, pool.submit(job, *arguments)) for place, job, arguments in jobs]
        for place, future in waiting:
            entry = future.result()
            if len(place) == 1:
                content[place[0]] = entry
            else:
                content[place[0]] = dict(sorted({**content[place[0]], place[1]: entry}.items()))
            reporting.write_json(OUT, content)
            print(" ".join(place), "measured", flush=True)
    with contextlib.suppress(KeyError):
        print("\n".join(markdown(content)))


def start_worker() -> None:
    """Set one thread, and hide warnings that the reports repeat."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    main()
