"""CFQ and the baselines that train, on the public data sets: Tables 1, 2, 5-7, 10, 11, 17, 18 and 20, Figures 3-5 and 8.

All methods share one trained model, its training rows, their activation formats (float input where it is narrow, 8-bit hidden tensors)
and the people they are judged on under the standard protocol; every number about a quantized model comes from running its ONNX file.
``faithful`` needs no training and stands beside them. Development seeds: three, and ten splits of german, pooled. What is measured is added
to the results file after every seed; what it holds of other methods and data sets stays. Data sets' seeds run side by side, in ``--jobs``
processes of one thread. Each command takes less than 40 minutes on two cores:

    CFPTQ_DATA_DIR=... python benchmarks/qat.py --datasets adult german compas --out benchmarks/results/qat.json
    python benchmarks/qat.py --datasets bank default
    python benchmarks/qat.py --datasets adult german compas --tables paper --out benchmarks/results/training.json
    python benchmarks/qat.py --datasets adult --tables ablation     # Table 2
    python benchmarks/qat.py --datasets adult --tables teacher --out benchmarks/results/training.json     # Tables 17, 18
    python benchmarks/qat.py --datasets adult --tables curve                # Figures 3-5 and 8
    python benchmarks/qat.py --datasets compas default --tables curve
    python benchmarks/qat.py --datasets adult german --tables variants      # Tables 6 and 7
    python benchmarks/qat.py --datasets adult --tables overhead             # Tables 10 and 20
    python benchmarks/qat.py --datasets adult compas --methods cfq-qat lsq-qat
    python benchmarks/qat.py --show benchmarks/results/qat.json             # the tables, and the plots beside the file
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

import cfptq
from cfptq.auditing import Protocol, ReferenceRecourse, evaluate, reference_recourse
from cfptq.experiments.recipe import Backbone, Mix, Recipe
from cfptq.io.atomic import write_text
from cfptq.network import Predictor, as_predictor
from cfptq.network.onnx.session import describe_runtime
from cfptq.training import QAT_METHODS, History, QatMethod, TeacherSettings, Trainer
from cfptq.training.presets import LOW_STEP

SEEDS: dict[str, Sequence[int]] = {"adult": range(3), "german": range(10), "compas": range(3), "bank": range(3), "default": range(3)}
BUDGET = 4.0
CURVE = (2.5, 3.0, 4.0, 6.0, 8.0)

#: The paper's Table 5: accuracy, VD, CRG at 4 average bits.
PAPER: dict[str, dict[str, tuple[float, float, float]]] = {
    "adult": {
        "lsq-qat": (0.856, 0.163, 0.218), "pact-qat": (0.857, 0.149, 0.201), "mixed-qat": (0.857, 0.121, 0.162),
        "cfq-qat": (0.857, 0.061, 0.071), "r-margin": (0.857, 0.102, 0.136), "r-consistency": (0.857, 0.097, 0.131),
    },
    "german": {
        "lsq-qat": (0.770, 0.141, 0.191), "pact-qat": (0.771, 0.128, 0.173), "mixed-qat": (0.771, 0.110, 0.151),
        "cfq-qat": (0.771, 0.052, 0.064), "r-margin": (0.771, 0.094, 0.128), "r-consistency": (0.771, 0.090, 0.124),
    },
    "compas": {
        "lsq-qat": (0.685, 0.176, 0.233), "pact-qat": (0.686, 0.160, 0.216), "mixed-qat": (0.686, 0.136, 0.178),
        "cfq-qat": (0.687, 0.074, 0.083), "r-margin": (0.686, 0.117, 0.154), "r-consistency": (0.686, 0.112, 0.149),
    },
    "bank": {
        "lsq-qat": (0.904, 0.182, 0.241), "pact-qat": (0.904, 0.166, 0.222), "mixed-qat": (0.904, 0.138, 0.182),
        "cfq-qat": (0.904, 0.071, 0.082),
    },
    "default": {
        "lsq-qat": (0.820, 0.167, 0.221), "pact-qat": (0.820, 0.153, 0.206), "mixed-qat": (0.820, 0.126, 0.171),
        "cfq-qat": (0.820, 0.064, 0.079),
    },
}  # fmt: skip

CFQ, LITERAL = QAT_METHODS["cfq-qat"], QAT_METHODS["cfq-paper"]


def _low_step(steps: int, noise: float = 0.0, cached: bool = True, step_size: float = 1.0) -> TeacherSettings:
    solver = replace(LOW_STEP.solvers[0], steps=steps, step_size=step_size)
    return replace(LOW_STEP, solvers=(solver,), noise=noise, cached=cached)


def _named(method: QatMethod, name: str, **changes: Any) -> QatMethod:
    return replace(method, name=name, **changes)


#: Ours with the paper's kind of points: those where recourse at one step size ends, on the accepted side alone.
ONE_SIDED = _named(CFQ, "cfq-qat, one teacher, one side", teacher=TeacherSettings())

#: Table -> its methods. The paper's own objective is judged by its own ablations, ours by ours.
TABLES: dict[str, tuple[str | QatMethod, ...]] = {
    "main": tuple(name for name in QAT_METHODS if name not in ("cfq-paper", "prune-quant-cf", "distil-quant-cf")),
    # The paper's objective, judged by boundary disagreement beside a baseline and ours.
    "paper": (
        "cfq-paper",
        _named(LITERAL, "cfq-paper, eta=0", objective=replace(LITERAL.objective, eta=0.0)),
        "prune-quant-cf",
        "distil-quant-cf",
        "lsq-qat",
        "cfq-qat",
        ONE_SIDED,
    ),
    "ablation": (
        _named(CFQ, "cfq-qat, eta=0", objective=replace(CFQ.objective, eta=0.0)),
        ONE_SIDED,
        _named(CFQ, "cfq-qat, no reserve", objective=replace(CFQ.objective, reserve=0.0)),
        _named(CFQ, "cfq-qat, no own recourse", schedule=replace(CFQ.schedule, student_recourse=0.0)),
        _named(CFQ, "cfq-qat, no sweeps", schedule=replace(CFQ.schedule, sweeps=0)),
        _named(CFQ, "cfq-qat, sweeps alone", schedule=replace(CFQ.schedule, learning_rate=0.0)),
    ),
    # cfq-paper itself has K=3, alpha=1 and sigma=0.
    "teacher": (
        _named(LITERAL, "cfq-paper, uniform bits", bits="start"),
        _named(LITERAL, "cfq-paper, steps per channel", per_channel=True),
        _named(LITERAL, "cfq-paper, drift guard", schedule=replace(LITERAL.schedule, max_drift=CFQ.schedule.max_drift)),
        _named(LITERAL, "cfq-paper, K=1", teacher=_low_step(1)),
        _named(LITERAL, "cfq-paper, alpha=10", teacher=_low_step(3, step_size=10.0)),
        *(_named(LITERAL, f"cfq-paper, sigma={noise:g}", teacher=_low_step(3, noise)) for noise in (0.01, 0.05, 0.1)),
    ),
}

#: All rows in the order of the tables; ``faithful`` needs no training and stands beside them.
TABLE_ORDER = tuple(dict.fromkeys(("faithful", *(row if isinstance(row, str) else row.name for rows in TABLES.values() for row in rows))))

#: Table -> its data sets. german and bank have no curves, because each would take more than 40 minutes.
DATASETS: dict[str, tuple[str, ...]] = {
    "main": tuple(SEEDS), "paper": ("adult", "german", "compas"), "ablation": ("adult",), "teacher": ("adult",),
    "curve": ("adult", "compas", "default"), "variants": ("adult", "german"), "overhead": ("adult",),
}  # fmt: skip

#: Methods that are ours start with these. All others reproduce published training, whose widths reach 8 bits behind integer inputs too.
OURS = ("faithful", "cfq-qat", "cfq-learned")

#: Tables 10 and 20: the same trainer and policy with η = 0 first, which times are set against.
OVERHEAD = (
    _named(LITERAL, "η = 0", objective=replace(LITERAL.objective, eta=0.0)),
    *(_named(LITERAL, f"K = {steps}", teacher=_low_step(steps, cached=False)) for steps in (1, 2, 3)),
    _named(LITERAL, "K = 3, cached"),
    _named(LITERAL, "K = 3, cached, a third of the actions", teacher=replace(_low_step(3), share=1 / 3)),
)
#: Epochs of each, and how often all take turns.
OVERHEAD_EPOCHS, TURNS = 4, 7

#: Metrics of the tables, as an entry holds them. CRG's size is each seed's own: gaps of opposite seeds do not cancel.
SUMMARIZED: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "accuracy": lambda entry: entry["accuracy"],
    "boundary_disagreement": lambda entry: entry.get("boundary_disagreement"),
    "premature_validity": lambda entry: entry.get("premature_validity"),
    "validity_drop_at_equal_rate": lambda entry: entry.get("validity_drop_at_equal_rate"),
    "crossing_shift": lambda entry: entry.get("crossing_shift", {}).get("mean_abs"),
    "validity_drop": lambda entry: entry["validity_drop"],
    "validity_drop_at_0.55": lambda entry: entry["validity_drop_at"]["0.55"],
    "recourse_gap": lambda entry: entry["recourse_gap"],
    "recourse_gap_size": lambda entry: None if entry["recourse_gap"] is None else abs(entry["recourse_gap"]),
    "recourse_gap_of_sums": lambda entry: entry["recourse_gap_of_sums"],
    "direction_similarity": lambda entry: entry["direction_similarity"],
    "favourable_rate_drift": lambda entry: entry["favourable_rate_drift"],
}

#: Methods of the budget curves.
CURVED = ("lsq-qat", "mixed-qat", "cfq-qat")
#: Method whose learned widths Figure 8 shows.
LEARNED = "cfq-learned"
#: Methods of Tables 6 and 7.
VARIED = ("mixed-qat", "cfq-qat")

#: Tables 6 and 7: other backbones and other costs, as changes of the recipe.
VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "logistic regression": lambda recipe: recipe.model_copy(update={"backbone": Backbone(kind="logistic-regression")}),
    "MLP 4x64": lambda recipe: recipe.model_copy(update={"backbone": Backbone(hidden=(64, 64, 64, 64))}),
    "ℓ2 cost": lambda recipe: recipe.model_copy(update={"actions": recipe.actions.model_copy(update={"norm": "l2"})}),
    "ℓ1 + ℓ2 cost": lambda recipe: recipe.model_copy(update={"actions": recipe.actions.model_copy(update={"norm": Mix(l1=0.5, l2=0.5)})}),
}

#: What a results file keeps of each evaluation.
KEPT = (
    "accuracy", "boundary_disagreement", "premature_validity", "validity_drop", "validity_drop_at_equal_rate", "crossing_shift",
    "validity_drop_at", "recourse_gap", "recourse_gap_of_sums", "recourse_gap_abs_median",
    "direction_similarity", "action_overlap", "favourable_rate_drift", "factual_flip_rate", "counts", "ci95",
)  # fmt: skip


class Judge:
    """One trained model, the people that quantized versions of it are judged by, and how each version is made."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.experiment = recipe.prepare(seed, progress=False)
        self.seed, self.rows = seed, recipe.calibration.rows
        self.f, self.people = self.reference(self.experiment.model)

    def reference(self, network: torch.nn.Module) -> tuple[Predictor, ReferenceRecourse]:
        """A full-precision model and its people's recourse."""
        columns, space = self.experiment.columns, self.experiment.action_set
        f = as_predictor(network, example=columns.train[:256], name="fp32")
        return f, reference_recourse(f, columns.test, space, self.experiment.dataset.favourable, Protocol(), self.seed, progress=False)

    def quantized(self, method: str | QatMethod, budget: float = BUDGET, **more: Any) -> cfptq.Result:
        """By training, or training-free."""
        experiment = self.experiment
        loader = [(experiment.columns.train, experiment.columns.train_labels)]
        name = method if isinstance(method, str) else method.name
        given: dict[str, Any] = {
            "budget": budget, "seed": self.seed, "portable": name.startswith(OURS), "progress": False, **more,
        }  # fmt: skip
        if method == "faithful":
            return cfptq.calibrate(experiment.model, loader, experiment.action_set, max_rows=self.rows, **given)
        return cfptq.qat(experiment.model, loader, experiment.action_set, method=method, **given)

    def __call__(self, method: str | QatMethod, budget: float = BUDGET) -> dict[str, Any]:
        """One method's entry, from its ONNX file."""
        started = time.perf_counter()
        result = self.quantized(method, budget)
        seconds = time.perf_counter() - started
        # A robustly trained model is the reference of its own quantization (E.1).
        robust = isinstance(method, str) and method.startswith("r-")
        f, people = self.reference(result.network.graph) if robust else (self.f, self.people)
        columns = self.experiment.columns
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            result.to_onnx(path)
            deployed = result.predictor(path)
            metrics = evaluate(f, deployed, people, columns.test, columns.test_labels, self.experiment.action_set, progress=False)
        content = metrics.to_dict()
        entry = {key: content[key] for key in KEPT}
        entry |= {"average_bits": result.plan.average_bits, "bits": result.bits, "seconds": round(seconds, 2)}
        if (history := result.training) is not None:
            entry |= {
                "best_epoch": history.best_epoch, "epochs": len(history.epochs), "overshot": history.overshot,
                "eligible_epochs": sum(each["eligible"] is True for each in history.epochs),
            }  # fmt: skip
        return entry


def measure(recipe: Recipe, seed: int, tables: Sequence[str], only: Sequence[str] = ()) -> dict[str, Any]:
    """Train the model, quantize it by every method of the tables (or by ``only`` some), judge: one data set, one seed."""
    judge = Judge(recipe, seed)
    chosen: dict[str, str | QatMethod] = {"faithful": "faithful"}
    for table in tables:
        chosen |= {entry if isinstance(entry, str) else entry.name: entry for entry in TABLES.get(table, ())}
    methods = {label: judge(entry) for label, entry in chosen.items() if not only or label in (*only, "faithful")}
    budgets = CURVE if "curve" in tables else ()
    drawn = [label for label in ("faithful", *CURVED) if not only or label in (*only, "faithful")]
    curve = {f"{budget:g}": {label: judge(label, budget) for label in drawn} for budget in budgets}
    if curve:
        curve[f"{BUDGET:g}"][LEARNED] = judge(LEARNED)
    return {"seed": seed, "fp32": judge.people.to_dict(judge.experiment.columns.test_labels), "methods": methods, "curve": curve}


def on_one_thread() -> None:
    """How a process works that has others beside it."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def measured(recipe: Recipe, seed: int, tables: Sequence[str], only: Sequence[str]) -> dict[str | None, dict[str, Any]]:
    """One data set, one seed: what the tables ask for, by variant; ``None`` is the recipe as it is."""
    found: dict[str | None, dict[str, Any]] = {}
    if set(tables) - {"variants"}:
        found[None] = measure(recipe, seed, tables, only)
    if "variants" in tables:
        found |= {variant: measure(changed(recipe), seed, ["main"], only or VARIED) for variant, changed in VARIANTS.items()}
    return found


def overhead(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Time of CFQ over the same trainer with η = 0, taken in turns; what share of a batch carries validity, and where time goes.

    Ratios of medians: of training alone, of preparing its batches alone (where a teacher that is not cached works), and of everything
    from the model to the plan.
    """
    judge = Judge(recipe, seed)
    taken: dict[str, dict[str, list[float]]] = {method.name: {"training": [], "batches": [], "everything": []} for method in OVERHEAD}
    points: dict[str, float] = {}
    for _ in range(TURNS):
        for method in OVERHEAD:
            times = taken[method.name]

            def timed(trainer: Trainer, name: str = method.name, times: dict[str, list[float]] = times) -> History:
                started = time.perf_counter()
                sizes = [(len(batch.rows), len(batch.points)) for batch in trainer.draw_batches(0)]
                times["batches"].append((time.perf_counter() - started) * trainer.schedule.epochs)
                points[name] = sum(size for _, size in sizes) / sum(size for size, _ in sizes)
                started = time.perf_counter()
                history = trainer.fit(progress=False)
                times["training"].append(time.perf_counter() - started)
                return history

            schedule = replace(method.schedule, epochs=OVERHEAD_EPOCHS, least_steps=0)
            started = time.perf_counter()
            judge.quantized(replace(method, schedule=schedule), fit=timed)
            times["everything"].append(time.perf_counter() - started - times["batches"][-1] / OVERHEAD_EPOCHS)
    middle = {name: {part: statistics.median(values) for part, values in times.items()} for name, times in taken.items()}
    base = middle[OVERHEAD[0].name]
    return {
        name: {
            "training": round(times["training"] / base["training"], 3),
            "everything": round(times["everything"] / base["everything"], 3),
            "points_per_row": round(points[name], 3),
            "share_spent_on_batches": round(times["batches"] / times["training"], 3),
        }
        for name, times in middle.items()
    }


def summary(runs: list[dict[str, Any]], pooled: bool, methods: Sequence[str] = ()) -> dict[str, dict[str, list[float]]]:
    """Mean, standard deviation (divisor n - 1) and the value of largest size over runs.

    ``pooled`` weighs a run's recourse by its number of people. Without ``methods``, all that every run has are summarized.
    """
    table: dict[str, dict[str, list[float]]] = {}
    for method in methods or [name for name in runs[0]["methods"] if all(name in run["methods"] for run in runs)]:
        entries = [run["methods"][method] for run in runs]
        table[method] = {}
        for metric, read in SUMMARIZED.items():
            read_off = [(read(entry), entry["counts"]["with_recourse"] if pooled else 1) for entry in entries]
            pairs = [(figure, people) for figure, people in read_off if figure is not None]
            if pairs and sum(people for _, people in pairs):
                figures = [figure for figure, _ in pairs]
                mean = sum(figure * people for figure, people in pairs) / sum(people for _, people in pairs)
                spread = statistics.stdev(figures) if len(figures) > 1 else 0.0
                farthest: float = max(figures, key=abs)
                table[method][metric] = [round(figure, 5) for figure in (mean, spread, farthest)]
    return table


def merged(runs: Sequence[dict[str, Any]], run: dict[str, Any]) -> list[dict[str, Any]]:
    """``runs`` with one more: a seed's earlier methods stay beside its new ones."""
    before = next((each for each in runs if each["seed"] == run["seed"]), {})
    curve = {
        budget: before.get("curve", {}).get(budget, {}) | run["curve"].get(budget, {}) for budget in before.get("curve", {}) | run["curve"]
    }
    whole = run | {"methods": before.get("methods", {}) | run["methods"], "curve": curve}
    return sorted([*(each for each in runs if each["seed"] != run["seed"]), whole], key=lambda each: int(each["seed"]))


def kept_epochs(runs: Sequence[Mapping[str, Any]], method: str) -> str:
    """Epochs that were kept, from 0, by run; -1 is the untrained start. Of many runs, how many kept the start."""
    entries = [run["methods"][method] for run in runs if method in run["methods"]]
    if not entries or entries[0].get("best_epoch") is None:
        return "–"
    kept = [entry["best_epoch"] for entry in entries]
    if len(kept) <= 5:
        return f"{', '.join(map(str, kept))} of {entries[0]['epochs']}"
    return f"-1 in {kept.count(-1)} of {len(kept)}"


#: Columns of the table that is judged by boundary disagreement, with decimals.
JUDGED = {
    "boundary_disagreement": ("BD", 4), "premature_validity": ("PV", 4), "validity_drop": ("VD", 4),
    "validity_drop_at_equal_rate": ("VD at equal rate", 4), "crossing_shift": ("shift", 3), "accuracy": ("accuracy", 3),
}  # fmt: skip


def judged(results: Mapping[str, Any]) -> Iterator[str]:
    """Tables by boundary disagreement, with drift and the epochs that were kept."""
    for name, content in results["datasets"].items():
        accuracy = statistics.mean(run["fp32"]["accuracy"] for run in content["runs"])
        seeds = ", ".join(str(run["seed"]) for run in content["runs"])
        yield f"\n**{name}**, {results['budget']:g} average bits, development seeds {seeds} (full precision {accuracy:.3f})\n"
        yield f"| method | seeds | {' | '.join(heading for heading, _ in JUDGED.values())} | drift, mean | drift, worst | kept |"
        yield "|---" * (len(JUDGED) + 5) + "|"
        found = {method: [run for run in content["runs"] if method in run["methods"]] for method in TABLE_ORDER}
        summaries = {method: summary(runs, name == "german", [method])[method] for method, runs in found.items() if runs}
        for method, row in sorted(summaries.items(), key=lambda item: item[1]["boundary_disagreement"][0]):
            spread = len(found[method]) > 1
            told = [
                f"{row[metric][0]:.{digits}f}" + (f" ± {row[metric][1]:.{digits}f}" if spread else "")
                for metric, (_, digits) in JUDGED.items()
            ]
            mean, _, worst = row["favourable_rate_drift"]
            drift = f"{100 * mean:+.2f} | {100 * worst:+.2f} points"
            yield f"| {method} | {len(found[method])} | {' | '.join(told)} | {drift} | {kept_epochs(found[method], method)} |"


def list_unmeasured(*contents: Mapping[str, Any]) -> list[str]:
    """List the rows that the tables define and that no results file holds, as "data set: row"."""
    held = {
        (name, method)
        for content in contents
        for name, entry in content["datasets"].items()
        for run in entry["runs"]
        for method in run["methods"]
    }
    wanted = [
        (name, row if isinstance(row, str) else row.name) for table, rows in TABLES.items() for name in DATASETS[table] for row in rows
    ]
    return [f"{name}: {row}" for name, row in dict.fromkeys(wanted) if (name, row) not in held]


def cells(row: Mapping[str, Sequence[float]]) -> list[str]:
    """A method's metrics, mean ± deviation, and the drift of its worst seed."""
    shown = (
        ("accuracy", 3), ("validity_drop", 4), ("validity_drop_at_0.55", 4), ("recourse_gap", 3), ("recourse_gap_size", 3),
        ("recourse_gap_of_sums", 3), ("direction_similarity", 3),
    )  # fmt: skip
    told = [f"{row[metric][0]:.{digits}f} ± {row[metric][1]:.{digits}f}" if metric in row else "–" for metric, digits in shown]
    return [*told, f"{100 * row['favourable_rate_drift'][2]:+.2f} points" if "favourable_rate_drift" in row else "–"]


def markdown(results: dict[str, Any]) -> Iterator[str]:
    """Our tables with the paper's figures beside them."""
    heads = ["accuracy", "VD", "VD at 0.55", "CRG", "size of CRG", "CRG of sums", "DirSim", "drift, worst seed"]
    for name, content in results["datasets"].items():
        accuracy = statistics.mean(run["fp32"]["accuracy"] for run in content["runs"])
        yield f"\n**{name}**, {BUDGET:g} average bits, {len(content['runs'])} seeds (full precision {accuracy:.3f})\n"
        yield f"| method | {' | '.join(heads)} | kept | seconds | paper: acc / VD / CRG |"
        yield "|---" * (len(heads) + 4) + "|"
        for method, row in content["summary"].items():
            taken = statistics.mean(run["methods"][method]["seconds"] for run in content["runs"])
            paper = PAPER.get(name, {}).get(method)
            told = " / ".join(f"{figure:.3f}" for figure in paper) if paper else "–"
            yield f"| {method} | {' | '.join(cells(row))} | {kept_epochs(content['runs'], method)} | {taken:.0f} | {told} |"
    if results.get("variants"):
        yield "\n**Other backbones and other costs** (Tables 6 and 7)\n"
        yield f"| variant | data set | method | {' | '.join(heads)} |"
        yield "|---" * (len(heads) + 3) + "|"
        for variant, datasets in results["variants"].items():
            for name, content in datasets.items():
                for method, row in content["summary"].items():
                    yield f"| {variant} | {name} | {method} | {' | '.join(cells(row))} |"
    for name, entries in results.get("overhead", {}).items():
        yield f"\n**Time over the same training with η = 0** (Tables 10 and 20), {name}\n"
        yield "| | training | model to plan | validity points a factual row | share of training spent on making batches |"
        yield "|---|---|---|---|---|"
        for label, entry in entries.items():
            yield "| {} | {:.2f} | {:.2f} | {:.2f} | {:.0%} |".format(
                label, *(entry[key] for key in ("training", "everything", "points_per_row", "share_spent_on_batches"))
            )


def _complete(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves that hold, at every budget, all that the first one holds."""
    return [run for run in runs if all(set(runs[0][budget]) <= set(run[budget]) for budget in runs[0])]


def plot(results: dict[str, Any], folder: Path) -> None:
    """``qat_curves.svg``: VD and CRG against average bits (Figures 3-5); ``qat_bits.svg``: widths by layer (Figure 8)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cfptq"
    from matplotlib import pyplot

    curves = {name: _complete([run["curve"] for run in content["runs"] if run["curve"]]) for name, content in results["datasets"].items()}
    curves = {name: runs for name, runs in curves.items() if runs}
    if not curves:
        return
    looks = {"lsq-qat": ("#999999", "s"), "mixed-qat": ("#d95f02", "^"), "cfq-qat": ("#7b3294", "v"), "cfq-learned": ("#008837", "d"),
             "faithful": ("#1b6ca8", "o")}  # fmt: skip
    figure, panels = pyplot.subplots(2, len(curves), figsize=(3.1 * len(curves), 5.4), sharex=True, sharey="row", squeeze=False)
    for column, (name, runs) in enumerate(curves.items()):
        budgets = sorted(map(float, runs[0]))
        for panel, metric in zip(panels[:, column], ("validity_drop", "recourse_gap"), strict=True):
            for method, (colour, marker) in looks.items():
                if not all(method in runs[0][f"{budget:g}"] for budget in budgets):
                    continue
                values = [[run[f"{budget:g}"][method][metric] for run in runs] for budget in budgets]
                means = [statistics.mean(figure for figure in each if figure is not None) for each in values]
                panel.plot(budgets, means, color=colour, marker=marker, markersize=4, linewidth=1, label=method)
            panel.grid(alpha=0.3)
        panels[0, column].set(title=f"{name} ({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})")
        panels[0, column].set_yscale("symlog", linthresh=0.01)
        panels[1, column].set_yscale("symlog", linthresh=0.05)
        panels[1, column].set(xlabel="average bits", xticks=budgets)
        panels[1, column].set_xticklabels([f"{budget:g}" for budget in budgets], fontsize=8)
    panels[0, 0].set(ylabel="Validity Drop", ylim=(0, None), yticks=(0, 0.005, 0.01, 0.1), yticklabels=("0", "0.005", "0.01", "0.1"))
    panels[1, 0].set(ylabel="CRG (mean)", yticks=(-0.1, -0.05, 0, 0.05, 0.1, 1), yticklabels=("-0.1", "-0.05", "0", "0.05", "0.1", "1"))
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    handles = {line.get_label(): line for panel in panels[0] for line in panel.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=len(handles), fontsize=8, frameon=False)
    figure.savefig(folder / "qat_curves.svg", metadata={"Date": None})

    figure, panels = pyplot.subplots(1, len(curves), figsize=(3.1 * len(curves), 2.6), sharey=True, squeeze=False)
    for panel, (name, runs) in zip(panels[0], curves.items(), strict=True):
        layers = sorted(runs[0][f"{BUDGET:g}"]["cfq-learned"]["bits"], key=lambda layer: (layer == "head", layer))
        for offset, method in enumerate(("mixed-qat", "cfq-learned", "faithful")):
            widths = [statistics.mean(run[f"{BUDGET:g}"][method]["bits"][layer] for run in runs) for layer in layers]
            panel.bar([place + 0.27 * (offset - 1) for place in range(len(layers))], widths, 0.25, color=looks[method][0], label=method)
        panel.set(title=name, xticks=range(len(layers)), xticklabels=layers, xlabel="layer", yticks=(2, 3, 4, 8))
        panel.grid(alpha=0.3, axis="y")
    panels[0, 0].set_ylabel(f"bits at {BUDGET:g} on average")
    panels[0, -1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "qat_bits.svg", metadata={"Date": None})


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/qat.json"))
    parser.add_argument("--datasets", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--tables", nargs="+", default=["main"], choices=[*TABLES, "curve", "variants", "overhead"])
    parser.add_argument("--methods", nargs="+", default=[], help="these methods of the tables only; faithful always runs")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds only")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side; times in the tables are taken so")
    parser.add_argument("--show", type=Path, help="print the tables of a results file, draw its plots beside it, and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if chosen.show:
        results = json.loads(chosen.show.read_text())
        plot(results, chosen.show.parent)
        print("\n".join(markdown(results)))
        return
    started = time.perf_counter()
    results = {"schema": 3, "budget": BUDGET, "seeds": "development", "datasets": {}, "variants": {}, "overhead": {}}
    if chosen.out.exists():
        results = json.loads(chosen.out.read_text())
    results |= {"measured": date.today().isoformat(), "runtime": describe_runtime()}

    def keep(place: dict[str, Any], name: str, run: dict[str, Any]) -> None:
        runs = merged(place.get(name, {"runs": []})["runs"], run)
        place[name] = {"runs": runs, "summary": summary(runs, pooled=name == "german")}
        write_text(chosen.out, json.dumps(results, sort_keys=True, separators=(",", ":")) + "\n")

    recipes = {name: Recipe.load(Path(__file__).parent.parent / "recipes" / f"{name}.yaml") for name in chosen.datasets}
    tables = {name: [table for table in chosen.tables if table != "overhead" and name in DATASETS[table]] for name in chosen.datasets}
    runs = [(name, seed) for name in chosen.datasets if tables[name] for seed in chosen.seeds or SEEDS[name]]
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn"), on_one_thread) as pool:
        pending = {pool.submit(measured, recipes[name], seed, tables[name], chosen.methods): (name, seed) for name, seed in runs}
        for number, done in enumerate(as_completed(pending), start=1):
            name, seed = pending[done]
            for variant, run in done.result().items():
                keep(results["datasets"] if variant is None else results["variants"].setdefault(variant, {}), name, run)
            print(f"{name} seed {seed}: {number} of {len(runs)} done, {time.perf_counter() - started:.0f} s", flush=True)
    if "overhead" in chosen.tables:
        on_one_thread()
        for name, recipe in recipes.items():
            results["overhead"][name] = overhead(recipe, 0)
            write_text(chosen.out, json.dumps(results, sort_keys=True, separators=(",", ":")) + "\n")
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
