"""Quantize by several methods, write each model to its file, and judge the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfptq.backends.latency import Runnable
from cfptq.backends.toolchains import TOOLCHAINS, deploy_toolchain
from cfptq.errors import CfptqError
from cfptq.io.progress import track
from cfptq.network import Predictor
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import as_method
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import QuantizationTask
from cfptq.pipeline.train_task import train_with
from cfptq.quantize import summarize_bits
from cfptq.training import QAT_METHODS, QatMethod

#: Judges a model, from its predictor, its file and its formats (keywords) to its entry in results.json.
Judge = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Deployments:
    """The judged models of several methods.

    Attributes:
        budgets: average bits as text -> method -> its entry in ``results.json``.
        unavailable: toolchain -> reason, for those that are not installed or cannot quantize the model.
        runs: method -> what runs its model of the first budget, an ONNX file or a PyTorch toolchain's model.
        seconds: wall time of each method and budget, in seconds.
    """

    budgets: dict[str, dict[str, dict[str, Any]]]
    unavailable: dict[str, str] = field(default_factory=dict)
    runs: dict[str, Runnable] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def deploy_all(
    task: QuantizationTask,
    methods: Sequence[str | Method | QatMethod],
    budgets: Sequence[float],
    folder: Path,
    judge: Judge,
    portable: bool = True,
    progress: bool = True,
) -> Deployments:
    """Quantize by each method at each budget, write the files into ``folder``, and judge them.

    Args:
        task: the model and its calibration rows, which methods that train are trained on too.
        methods: presets, toolchains or method objects. A toolchain has one width and ignores the budget.
        budgets: average bits per weight.
        folder: existing folder for the files.
        judge: returns a model's entry in ``results.json``.
        portable: keep weights behind integer inputs within ±63. It does not apply to toolchains.
        progress: whether a progress bar may be shown.
    """
    done = Deployments({str(float(budget)): {} for budget in budgets})
    toolchains: dict[str, dict[str, Any]] = {}
    for budget, entry in track([(float(b), entry) for b in budgets for entry in methods], "comparing", enabled=progress):
        name = entry if isinstance(entry, str) else entry.name
        if name in done.unavailable:
            continue
        started = time.perf_counter()
        if name not in TOOLCHAINS:
            done.budgets[str(budget)][name] = _deploy_method(task, entry, budget, folder, judge, portable, done)
        else:
            if name not in toolchains:
                try:
                    student, path, run = deploy_toolchain(name, task.network, task.rows, folder, task.decision)
                except CfptqError as error:
                    done.unavailable[name] = str(error)
                    continue
                toolchains[name] = judge(student, path, average_bits=float(TOOLCHAINS[name].weight_bits), activation_bits=8, input_bits=8)
                done.runs[name] = run
            done.budgets[str(budget)][name] = toolchains[name]
        done.seconds[f"{name}@{budget:g}"] = time.perf_counter() - started
    return done


def _deploy_method(
    task: QuantizationTask,
    method: str | Method | QatMethod,
    budget: float,
    folder: Path,
    judge: Judge,
    portable: bool,
    done: Deployments,
) -> dict[str, Any]:
    """Quantize by one method, write and judge its file, and note in ``done`` what runs it."""
    chosen = QAT_METHODS.get(method) or as_method(method) if isinstance(method, str) else method
    if isinstance(chosen, QatMethod):
        result = train_with(task, chosen, budget, portable=portable, progress=False)
    else:
        result = quantize_with(task, chosen, budget, portable=portable, progress=False)
    path = folder / f"{chosen.name}-{budget:g}.onnx"
    result.to_onnx(path)
    done.runs.setdefault(chosen.name, path)
    student: Predictor = result.predictor(path)
    plan = result.plan
    entry = judge(student, path, average_bits=plan.average_bits, activation_bits=result.activation_bits, input_bits=result.input_bits)
    return entry | {"bits": {name: summarize_bits(bits) for name, bits in result.bits.items()}, "keep": list(plan.keep)}
