"""Every method's model, quantized, written to its file and judged from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfptq.backends.latency import Runnable
from cfptq.backends.toolchains import PEERS, deployed_peer
from cfptq.errors import CfptqError
from cfptq.io.progress import track
from cfptq.network import Predictor
from cfptq.pipeline.method import Method, as_method
from cfptq.pipeline.task import Teacher
from cfptq.pipeline.train_task import learn
from cfptq.training import QAT_METHODS, QatMethod

#: What a model is judged by: its predictor, its file, and its formats (keywords) -> its entry in results.json.
Judge = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Deployments:
    """What became of each method.

    Attributes:
        budgets: by average bits as text, by method, its entry as in ``results.json``.
        unavailable: toolchains that are not installed or cannot quantize the model, and why.
        runs: what runs each method's model of the first budget: its ONNX file, or a PyTorch toolchain's model as it is.
        seconds: wall time of each method and budget.
    """

    budgets: dict[str, dict[str, dict[str, Any]]]
    unavailable: dict[str, str] = field(default_factory=dict)
    runs: dict[str, Runnable] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def deploy_all(
    teacher: Teacher,
    methods: Sequence[str | Method | QatMethod],
    budgets: Sequence[float],
    folder: Path,
    judge: Judge,
    portable: bool = True,
    progress: bool = True,
) -> Deployments:
    """Quantize by each method (or toolchain, whose one width ignores the budget) at each budget; files go to ``folder``.

    Methods that train do so on the teacher's calibration rows. ``portable`` is about the methods, not about the toolchains.
    """
    done = Deployments({str(float(budget)): {} for budget in budgets})
    toolchains: dict[str, dict[str, Any]] = {}
    for budget, entry in track([(float(b), entry) for b in budgets for entry in methods], "comparing", enabled=progress):
        name = entry if isinstance(entry, str) else entry.name
        if name in done.unavailable:
            continue
        started = time.perf_counter()
        if name not in PEERS:
            done.budgets[str(budget)][name] = _method(teacher, entry, budget, folder, judge, portable, done)
        else:
            if name not in toolchains:
                try:
                    student, path, run = deployed_peer(name, teacher.network, teacher.rows, folder, teacher.head, teacher.threshold)
                except CfptqError as error:
                    done.unavailable[name] = str(error)
                    continue
                toolchains[name] = judge(student, path, average_bits=float(PEERS[name]), activation_bits=8, input_bits=8)
                done.runs[name] = run
            done.budgets[str(budget)][name] = toolchains[name]
        done.seconds[f"{name}@{budget:g}"] = time.perf_counter() - started
    return done


def _method(
    teacher: Teacher, method: str | Method | QatMethod, budget: float, folder: Path, judge: Judge, portable: bool, done: Deployments
) -> dict[str, Any]:
    chosen = QAT_METHODS.get(method) or as_method(method) if isinstance(method, str) else method
    if isinstance(chosen, QatMethod):
        result = learn(teacher, chosen, budget, portable=portable, progress=False)
    else:
        result = teacher.quantized(chosen, budget, portable=portable, progress=False)
    path = folder / f"{chosen.name}-{budget:g}.onnx"
    result.to_onnx(path)
    done.runs.setdefault(chosen.name, path)
    student: Predictor = result.predictor(path)
    plan = result.plan
    entry = judge(student, path, average_bits=plan.average_bits, activation_bits=result.activation_bits, input_bits=result.input_bits)
    return entry | {"bits": result.bits}
