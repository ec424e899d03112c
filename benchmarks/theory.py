"""Section 5 and Appendix L against what happens: estimates, bounds and proofs beside the recourse that fails.

Each development network is quantized by two methods into files. Recourse is that of the full-precision model on refused test people, once
by projected-gradient steps, which end just behind the boundary, and once at the least cost for a confidence of 0.60. ε is measured by 16
draws in a ball (eq. 61), estimated by first order (eqs. 65, 66) and bounded layer by layer (eqs. 52 to 60). A person is at risk where the
margin is at most 2 ε (eq. 64). Proofs are about the file, at the point and for every deviation within the radius.

    CFPTQ_DATA_DIR=... python benchmarks/theory.py     # some ten minutes on one core
    python benchmarks/theory.py --show
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import reporting
import torch
from torch import Tensor

import cfptq
from cfptq.auditing import RecourseProver, bound_perturbation, estimate_margins
from cfptq.network import Predictor, as_predictor, decide
from cfptq.network.onnx.session import describe_runtime
from cfptq.recourse import MinimalCost, ProjectedGradient, solve

OUT = reporting.RESULTS / "theory.json"
SEEDS: Mapping[str, tuple[int, ...]] = {
    "adult": (100, 101), "german": (0, 1), "compas": (100, 101), "bank": (100, 101), "default": (100, 101)
}  # fmt: skip
METHODS, BUDGET = ("ptq", "faithful"), 4.0
RADIUS, SAMPLES, PEOPLE = 0.05, 16, 300
RECOURSE = {"projected gradient": ProjectedGradient(), "minimal cost, 0.60": MinimalCost(confidence=0.60)}


def judge(estimate: Any, is_at_risk: Tensor) -> dict[str, float | None]:
    """Return the share at risk, the share of failing people who are, and the share of people at risk who fail."""
    both = float((is_at_risk & estimate.fails).double().sum())
    fails, risk = float(estimate.fails.double().sum()), float(is_at_risk.double().sum())
    return {
        "share": float(is_at_risk.double().mean()),
        "failing_found": both / fails if fails else None,
        "found_failing": both / risk if risk else None,
    }


def measure_recourse(f: Predictor, f_q: Predictor, provers: list[RecourseProver], result: cfptq.Result, batch: Any) -> dict[str, Any]:
    """Compare estimates, bounds and proofs with the failures of one kind of recourse."""
    points, target = batch.points[batch.found], batch.target[batch.found]
    granted = decide(f.logits(points)) == target
    points, target = points[granted], target[granted]
    estimate = estimate_margins(f, f_q, points, target, radius=RADIUS, samples=SAMPLES, progress=False)
    layers = bound_perturbation(result.network, result.plan, result.decision, points, radius=RADIUS)
    started = time.perf_counter()
    at_point = provers[1].prove(points, target)
    seconds = time.perf_counter() - started
    around, before = (prover.prove(points, target, radius=RADIUS) for prover in provers[::-1])
    assert not bool((estimate.fails & at_point.holds).any())
    assert bool((layers.epsilon + 1e-4 >= estimate.epsilon).all())
    margin = estimate.margin.double()
    return {
        "people": len(points),
        "failed": estimate.failed,
        "median_margin": float(margin.median()),
        "measured": judge(estimate, ~estimate.holds),
        "first_order": judge(estimate, margin <= 2 * estimate.first_order.double()),
        "layerwise": judge(estimate, margin <= 2 * layers.epsilon),
        "epsilon": {
            "measured_median": float(estimate.epsilon.median()),
            "measured_p95": estimate.epsilon_quantile(),
            "measured_max": estimate.epsilon_quantile(1),
            "first_order_median": float(estimate.first_order.median()),
            "first_order_p95": float(estimate.first_order.double().quantile(0.95)),
            "layerwise_median": float(layers.epsilon.median()),
        },
        "layer_shares": layers.shares,
        "activation_share": layers.activation_share,
        "proven_at_point": at_point.fraction,
        "proven_in_ball": around.fraction,
        "proven_in_ball_on_first": before.fraction,
        "proven_in_ball_on_both": float((around.holds & before.holds).double().mean()),
        "seconds_per_person": seconds / max(len(points), 1),
    }


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Measure one network."""
    experiment = reporting.load_experiment(name, seed)
    columns, space, favourable = experiment.columns, experiment.action_set, experiment.dataset.favourable
    example = columns.train[:256]
    f = as_predictor(experiment.model, example=example, name="fp32")
    rows = columns.test[decide(f.logits(columns.test)) != favourable]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:PEOPLE]]
    batches = {
        label: solve(f, rows, space, target=favourable, method=solver, seed=seed, progress=False) for label, solver in RECOURSE.items()
    }
    before = RecourseProver(f, example)
    methods: dict[str, Any] = {}
    for method in METHODS:
        maximum = reporting.load_recipe(name).calibration.rows
        result = cfptq.calibrate(
            experiment.model, [(columns.train, columns.train_labels)], space,
            method=method, budget=BUDGET, seed=seed, max_rows=maximum, target=favourable, progress=False,
        )  # fmt: skip
        path = folder / f"{method}.onnx"
        result.to_onnx(path)
        f_q = result.predictor(path)
        provers = [before, RecourseProver(f_q, example)]
        methods[method] = {
            "average_bits": result.plan.average_bits,
            "input": result.input_format,
            **{label: measure_recourse(f, f_q, provers, result, batch) for label, batch in batches.items()},
        }
    return {"seed": seed, "network": experiment.network.sha256, "methods": methods}


def mean(runs: list[Any], method: str, kind: str, *keys: str) -> float | None:
    """Average a figure over networks, each weighed by its people."""
    total, weight = 0.0, 0
    for run in runs:
        entry = run["methods"][method][kind]
        value: Any = entry
        for key in keys:
            value = value[key]
        if value is not None and not math.isnan(value):
            total, weight = total + value * entry["people"], weight + entry["people"]
    return total / weight if weight else None


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write the tables."""
    settings = results["settings"]

    def show(runs: list[Any], method: str, kind: str, *keys: str) -> str:
        value = mean(runs, method, kind, *keys)
        return "–" if value is None else f"{100 * value:.1f}"

    for kind in settings["recourse"]:
        yield f"**{kind[0].upper()}{kind[1:]}.** Shares in % of people whose recourse the full-precision model grants\n"
        yield (
            "| data set | method | people | failed (observed) | at risk, measured ε | at risk, first order | at risk, layerwise bound "
            "| failing people who are at risk (measured, first order) | people at risk who fail (likewise) |"
        )
        yield "|" + "---|" * 9
        for name, runs in results["datasets"].items():
            for method in settings["methods"]:
                cells = [
                    str(sum(run["methods"][method][kind]["people"] for run in runs)),
                    show(runs, method, kind, "failed"),
                    *(show(runs, method, kind, way, "share") for way in ("measured", "first_order", "layerwise")),
                    ", ".join(show(runs, method, kind, way, "failing_found") for way in ("measured", "first_order")),
                    ", ".join(show(runs, method, kind, way, "found_failing") for way in ("measured", "first_order")),
                ]
                yield f"| {name} | {method} | {' | '.join(cells)} |"
        yield ""
        yield (
            "| data set | method | holds (observed) | proven at the point | proven in the ball | f itself proven in the ball | both "
            "| ε at the median: measured, first order, layerwise bound | rounded activations in the bound | layers in the bound |"
        )
        yield "|" + "---|" * 10
        for name, runs in results["datasets"].items():
            for method in settings["methods"]:
                held = 1 - (mean(runs, method, kind, "failed") or 0.0)
                layers = runs[0]["methods"][method][kind]["layer_shares"]
                cells = [
                    f"{100 * held:.1f}",
                    *(show(runs, method, kind, key) for key in
                      ("proven_at_point", "proven_in_ball", "proven_in_ball_on_first", "proven_in_ball_on_both")),
                    ", ".join(
                        f"{mean(runs, method, kind, 'epsilon', key):.3f}"
                        for key in ("measured_median", "first_order_median", "layerwise_median")
                    ),
                    f"{show(runs, method, kind, 'activation_share')} %",
                    ", ".join(f"{name} {100 * (mean(runs, method, kind, 'layer_shares', name) or 0):.0f} %" for name in layers),
                ]  # fmt: skip
                yield f"| {name} | {method} | {' | '.join(cells)} |"
        yield ""
    yield (
        f"The ball has a radius of {settings['radius']:g} in standardized columns, and ε was measured at its centre and "
        f"{settings['samples']} draws. {settings['budget']:g} average bits, development seeds. "
        f"Proofs take {1000 * results['seconds_per_person']:.0f} "
        "milliseconds a person. No person with a proof failed, and no measured ε was above the layerwise bound."
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--datasets", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.show:
        torch.set_num_threads(1)
        content: dict[str, Any] = {}
        started = time.perf_counter()
        for name in chosen.datasets:
            with tempfile.TemporaryDirectory() as folder:
                content[name] = [measure(name, seed, Path(folder)) for seed in SEEDS[name]]
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
            speeds = [
                run["methods"][method][kind]["seconds_per_person"] for runs in content.values() for run in runs
                for method in METHODS for kind in RECOURSE
            ]  # fmt: skip
            settings = {
                "methods": METHODS, "budget": BUDGET, "radius": RADIUS, "samples": SAMPLES, "people": PEOPLE, "recourse": list(RECOURSE)
            }  # fmt: skip
            reporting.write_results(
                chosen.out,
                {
                    "schema": 1, "settings": settings, "datasets": content, "runtime": describe_runtime(),
                    "seconds_per_person": sorted(speeds)[len(speeds) // 2],
                },
            )  # fmt: skip
    print("\n".join(markdown(json.loads(chosen.out.read_text()))))


if __name__ == "__main__":
    main()
