"""Every toolchain's own quantization beside ours on the adult data: what each does to recourse, what it weighs and what it takes.

The toolchains that ``cfptq.compare`` knows (ONNX Runtime, PT2E, FX, Neural Compressor), NNCF and NVIDIA ModelOpt, each with its default
settings; one that is missing, or cannot quantize the model, is a row that says so. All see the same calibration rows and are judged on
the same people. Latency: one thread, models taken in turns; PyTorch toolchains as they come, without ``torch.compile``. ModelOpt's PyTorch
models only simulate integers: they have no file and no latency.

    CFPTQ_DATA_DIR=... python benchmarks/toolchain_peers.py --out benchmarks/results/toolchain_peers.json
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from cfptq.auditing import Protocol, evaluate, reference_recourse
from cfptq.backends.latency import BATCHES, Runnable, measure_latency
from cfptq.backends.toolchains import TOOLCHAINS, make_eager_runner
from cfptq.experiments.recipe import Recipe
from cfptq.io.atomic import write_text
from cfptq.network import Predictor, as_predictor, to_onnx_model
from cfptq.pipeline.comparison import Comparison
from cfptq.pipeline.deploy import deploy_all
from cfptq.pipeline.task import QuantizationTask, TaskSettings, build_task

RECIPE = Path(__file__).parent.parent / "recipes" / "adult.yaml"
OURS = ("cf-ptq", "faithful")
BUDGET = 4.0
#: What is written of each method, beside bytes and latency.
METRICS = (
    "average_bits",
    "accuracy",
    "validity_drop",
    "recourse_gap",
    "recourse_gap_of_sums",
    "direction_similarity",
    "favourable_rate_drift",
    "factual_flip_rate",
)
#: Rows that ModelOpt is shown at a time.
BATCH = 128


@dataclass(frozen=True)
class Quantized:
    """A toolchain's model: what it computes, average bits of its weights, bits of its widest activation, and its file if it has one."""

    run: Path | Callable[[Any], torch.Tensor]
    bits: float
    activation_bits: int

    def predictor(self, name: str, teacher: QuantizationTask) -> Predictor:
        twin = None if isinstance(self.run, Path) else teacher.network.graph
        return as_predictor(
            self.run, example=teacher.rows[:256], head=teacher.decision.head, threshold=teacher.decision.threshold, name=name, twin=twin
        )


def nncf_int8(model: nn.Module, teacher: QuantizationTask, folder: Path) -> Quantized:
    """NNCF's post-training quantization of the ONNX file, all calibration rows shown."""
    nncf = _nncf()
    shown = nncf.Dataset([{"input": row[None].numpy()} for row in teacher.rows])
    path = folder / "nncf-int8.onnx"
    onnx.save(nncf.quantize(to_onnx_model(teacher.network), shown, subset_size=len(teacher.rows)), path)
    return Quantized(path, 8.0, 8)


def nncf_int4(model: nn.Module, teacher: QuantizationTask, folder: Path) -> Quantized:
    """Compress the weights of the ONNX file by NNCF, to INT4 in every layer with activations in float."""
    nncf = _nncf()
    path = folder / "nncf-int4.onnx"
    mode = nncf.CompressWeightsMode.INT4_SYM
    onnx.save(nncf.compress_weights(to_onnx_model(teacher.network), mode=mode, ratio=1.0, group_size=-1, all_layers=True), path)
    return Quantized(path, 4.0, 32)


def modelopt_int8(model: nn.Module, teacher: QuantizationTask, folder: Path) -> Quantized:
    """Quantize by ModelOpt's default INT8, with a step per channel of weights and one per tensor of activations."""
    return _modelopt(model, teacher, "INT8_DEFAULT_CFG", 8.0, 8)


def modelopt_int4(model: nn.Module, teacher: QuantizationTask, folder: Path) -> Quantized:
    """ModelOpt's INT4 in blocks, weights alone."""
    return _modelopt(model, teacher, "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 4.0, 32)


def modelopt_auto(model: nn.Module, teacher: QuantizationTask, folder: Path) -> Quantized:
    """ModelOpt's search over both by its gradient score, at its default of 4.8 effective bits."""
    import modelopt.torch.quantization as mtq

    labels = teacher.predictor.logits(teacher.rows).argmax(dim=1) if teacher.labels is None else teacher.labels
    batches = list(zip(teacher.rows.split(BATCH), labels.split(BATCH), strict=True))
    found, state = mtq.auto_quantize(
        copy.deepcopy(model),
        constraints={"effective_bits": 4.8},
        quantization_formats=["INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "INT8_DEFAULT_CFG"],
        data_loader=batches,
        forward_step=lambda candidate, batch: candidate(batch[0]),
        loss_func=lambda output, batch: cross_entropy(output, batch[1]),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
    )
    return Quantized(make_eager_runner(found.eval()), float(state["best"]["constraints"]["effective_bits"]), 32)


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # else it sends usage data to its makers
    import nncf

    return nncf


def _modelopt(model: nn.Module, teacher: QuantizationTask, config: str, bits: float, activation_bits: int) -> Quantized:
    import modelopt.torch.quantization as mtq

    def show(candidate: nn.Module) -> None:
        with torch.no_grad():
            for rows in teacher.rows.split(BATCH):
                candidate(rows)

    quantized = mtq.quantize(copy.deepcopy(model), getattr(mtq, config), show)
    return Quantized(make_eager_runner(quantized.eval()), bits, activation_bits)


#: Toolchains that the package has no adapter for.
OTHERS: Mapping[str, Callable[[nn.Module, QuantizationTask, Path], Quantized]] = {
    "nncf-int8": nncf_int8,
    "nncf-int4": nncf_int4,
    "modelopt-int8": modelopt_int8,
    "modelopt-int4": modelopt_int4,
    "modelopt-auto": modelopt_auto,
}
PACKAGES = {"nncf": "nncf", "modelopt": "nvidia-modelopt"}


def measure(seed: int) -> Comparison:
    """Train, quantize by every toolchain and by ours, judge on the same people."""
    recipe = Recipe.load(RECIPE)
    experiment = recipe.prepare(seed)
    columns, space = experiment.columns, experiment.action_set
    teacher = build_task(
        experiment.model, [(columns.train, columns.train_labels)], space, TaskSettings(max_rows=recipe.calibration.rows, seed=seed)
    )
    people = reference_recourse(teacher.predictor, columns.test, space, teacher.target, Protocol(), seed)

    def judged(student: Predictor, path: Path | None, **deployed: Any) -> dict[str, Any]:
        metrics = evaluate(teacher.predictor, student, people, columns.test, columns.test_labels, space, progress=False)
        return metrics.to_dict(**deployed, stored_bytes=None if path is None else path.stat().st_size)

    with tempfile.TemporaryDirectory() as place:
        done = deploy_all(teacher, [*TOOLCHAINS, *OURS], [BUDGET], Path(place), judged)
        methods, runs, unavailable = done.budgets[str(BUDGET)], dict(done.runs), dict(done.unavailable)
        for name, quantize in OTHERS.items():
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    found = quantize(experiment.model, teacher, Path(place))
            except ImportError as error:
                unavailable[name] = f"not installed ({error}): pip install {PACKAGES[name.split('-')[0]]}, or 'cfptq[bench]'"
                continue
            except Exception as error:  # whatever a toolchain raises
                unavailable[name] = f"cannot quantize this model ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
                continue
            path = found.run if isinstance(found.run, Path) else None
            deployed = {"average_bits": found.bits, "activation_bits": found.activation_bits, "input_bits": found.activation_bits}
            methods[name] = judged(found.predictor(name, teacher), path, **deployed)
            if path is not None:
                runs[name] = path
        fp32: Runnable = to_onnx_model(teacher.network).SerializeToString()
        latency = measure_latency({"fp32": fp32, **runs}, columns.test)
    return Comparison("adult", seed, people.to_dict(columns.test_labels), {str(BUDGET): methods}, str(BUDGET), unavailable, latency=latency)


def summary(runs: list[Comparison]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compute the mean of each method's figures, and their standard deviation over several seeds."""
    for name in runs[0].methods:
        entries = [run.methods[name] for run in runs if name in run.methods]
        row: dict[str, Any] = {metric: _spread([entry[metric] for entry in entries]) for metric in METRICS}
        row |= {key: entries[0][key] for key in ("activation_bits", "input_bits", "stored_bytes")}
        times = [run.latency[name] for run in runs if name in run.latency]
        if times:
            row["latency_us"] = {str(batch): round(statistics.mean(taken[batch] for taken in times), 1) for batch in times[0]}
        yield name, row


def _spread(figures: list[float | None]) -> list[float] | None:
    known = [figure for figure in figures if figure is not None]
    if not known:
        return None
    return [round(statistics.mean(known), 5), round(statistics.stdev(known), 5) if len(known) > 1 else 0.0]


def main() -> None:
    """Measure every seed, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/toolchain_peers.json"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    console = Console(width=140)
    runs: list[Comparison] = []
    for seed in range(arguments.seeds):
        runs.append(measure(seed))
        console.print(runs[-1])
        content = {
            "dataset": "adult",
            "seeds": list(range(seed + 1)),
            "fp32_accuracy": _spread([run.fp32["accuracy"] for run in runs]),
            "fp32_latency_us": {str(batch): round(statistics.mean(run.latency["fp32"][batch] for run in runs), 1) for batch in BATCHES},
            "methods": dict(summary(runs)),
            "unavailable": dict(runs[0].unavailable),
        }
        write_text(arguments.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
