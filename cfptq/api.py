"""The front door: calibrate, compare, audit. Each is the pipeline of the package on one screen."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from cfptq.actions import ActionSet, ActionSpace
from cfptq.allocation import Budget
from cfptq.auditing import AuditReport, Protocol, evaluate, run_audit, teacher_recourse
from cfptq.backends.quantize_static import vanilla_onnx
from cfptq.calibration import draw_rows
from cfptq.comparison import Comparison
from cfptq.errors import ActionSetError, DataError, RecipeError
from cfptq.method import METHODS, Method, as_method
from cfptq.network import Head, Predictor, as_predictor, undisturbed
from cfptq.progress import track
from cfptq.recourse import Target
from cfptq.result import Result, load
from cfptq.teacher import PROBE_ROWS, prepare

__all__ = ["DEFAULT_METHOD", "PEERS", "audit", "calibrate", "compare", "load"]

DEFAULT_METHOD = "faithful"

#: What toolchains do by themselves, by name: weight bits of ONNX Runtime's ``quantize_static``.
PEERS: Mapping[str, int] = {"ort-int8": 8, "ort-int4": 4}

#: What ``compare`` compares unless told otherwise.
COMPARED = ("ort-int8", "ort-int4", "mixed-ptq", "cf-ptq-calibration", "cf-ptq-allocation", "cf-ptq", "faithful")


def calibrate(
    model: nn.Module,
    calib_loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    target: Target | None = None,
    budget: Budget | float | None = None,
    max_validity_drop: float | None = None,
    method: str | Method = DEFAULT_METHOD,
    layers: Mapping[str, int] | None = None,
    activation_bits: int | None = None,
    input_bits: int | None = None,
    portable: bool = False,
    head: Head | str | None = None,
    threshold: float | None = None,
    max_rows: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Quantize ``model`` so that the recourse its users were given survives. The model itself is left as it was.

    Args:
        model: a trained classifier: (N, ...) float32 in, logits, one logit, or probabilities out.
        calib_loader: rows to calibrate on: tensors, (x, y) pairs, dicts or arrays; at most ``max_rows`` are kept, drawn evenly.
        action_set: what people can change; encoded, so that it speaks of the model's columns.
        target: class that recourse leads to, one per calibration row, or a rule (rows, decisions) -> classes. By default
            the action set's ``favourable``.
        budget: average bits per weight, or a :class:`cfptq.Budget`. 4.0 where neither it nor ``max_validity_drop`` is given.
        max_validity_drop: instead of a budget, the fewest bits whose Validity Drop on rows set aside is at most this.
        method: a preset's name or a :class:`cfptq.Method`.
        layers: bits that named layers must have.
        activation_bits: 8, 16, or 32 for float; by default what the method has.
        input_bits: the same for the model's input.
        portable: keep 8-bit weights within ±63, for processors without VNNI.
        head, threshold: what the model puts out (inferred where None) and where a binary model decides.
        seed: of the calibration draw.

    Raises:
        DataError: rows that cannot be used; no target class.
        ActionSetError: rows that break the action set's rules.
        ModelError: a model that cannot be captured, or with nothing to quantize.
        BudgetError: a budget that cannot be met.
    """
    if budget is not None and max_validity_drop is not None:
        raise RecipeError("give a budget or max_validity_drop, not both: the one fixes the bits, the other finds them")
    chosen = as_method(method).with_activations(activation_bits, input_bits)
    with undisturbed(model, threads=1):
        teacher = prepare(
            model,
            calib_loader,
            _space(action_set),
            target=target,
            seed=seed,
            max_rows=max_rows,
            head=head,
            threshold=threshold,
            progress=progress,
        )
        if max_validity_drop is not None:
            return teacher.fewest_bits(chosen, max_validity_drop, pinned=layers, portable=portable, progress=progress)
        return teacher.quantized(chosen, 4.0 if budget is None else budget, pinned=layers, portable=portable, progress=progress)


def compare(
    model: nn.Module,
    calib_loader: Iterable[Any],
    test_loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    methods: Sequence[str | Method] = COMPARED,
    budgets: Sequence[float] = (4.0,),
    target: Target | None = None,
    groups: Mapping[str, Sequence[Any]] | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    max_rows: int = 4096,
    protocol: Protocol | None = None,
    seed: int = 0,
    dataset: str = "data",
    keep: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Quantize ``model`` by each method and measure, in ONNX Runtime and on the same rows, what each did to recourse.

    Args:
        model, calib_loader, action_set, target, head, threshold, max_rows, seed: as in :func:`calibrate`.
        test_loader: the people to judge by; with labels, accuracy is reported too.
        methods: names of presets or of toolchains' own quantization (:data:`PEERS`), or :class:`cfptq.Method` objects.
        budgets: average bits; the first is the headline. Toolchains' own methods have one width and ignore it.
        groups: name -> one value per test row, for Validity Drop by subgroup.
        protocol: evaluation settings; the standard protocol by default.
        dataset: a word for tables and files.
        keep: folder that the ONNX files are written to.

    Raises:
        RecipeError: an unknown method. Otherwise as :func:`calibrate`.
    """
    names = [entry if isinstance(entry, str) else entry.name for entry in methods]
    unknown = [entry for entry in methods if isinstance(entry, str) and entry not in METHODS and entry not in PEERS]
    if unknown:
        raise RecipeError(f"there is no method {unknown[0]!r} to compare; choose from {', '.join([*PEERS, *METHODS])}")
    if not budgets or len(set(names)) != len(names):
        raise RecipeError("compare needs at least one budget, and each method once")
    rules = protocol or Protocol()
    space = _space(action_set)
    seconds: dict[str, float] = {}
    with undisturbed(model, threads=1), contextlib.ExitStack() as stack:
        if keep is not None:
            Path(keep).mkdir(parents=True, exist_ok=True)
        folder = Path(keep) if keep is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.perf_counter()
        teacher = prepare(
            model,
            calib_loader,
            space,
            target=target,
            seed=seed,
            max_rows=max_rows,
            head=head,
            threshold=threshold,
            progress=progress,
        )
        rows, labels = draw_rows(test_loader, max_rows=sys.maxsize, seed=seed, encode=getattr(space, "encode", None), progress=progress)
        space.check(rows)
        people = teacher_recourse(teacher.predictor, rows, space, teacher.target, rules, seed, progress=progress)
        seconds["teacher"] = time.perf_counter() - started

        def judged(student: Predictor, path: Path, **deployed: Any) -> dict[str, Any]:
            metrics = evaluate(teacher.predictor, student, people, rows, labels, space, groups, progress=False)
            return metrics.to_dict(**deployed, stored_bytes=path.stat().st_size)

        peers: dict[str, dict[str, Any]] = {}
        table: dict[str, dict[str, dict[str, Any]]] = {}
        work = [(float(budget), entry) for budget in budgets for entry in methods]
        for budget, entry in track(work, "comparing", enabled=progress):
            name = entry if isinstance(entry, str) else entry.name
            started = time.perf_counter()
            if name in PEERS:
                if name not in peers:
                    path = folder / f"{name}.onnx"
                    vanilla_onnx(teacher.network.to_onnx_model(), teacher.rows, PEERS[name], path)
                    student = as_predictor(path, example=teacher.rows[:PROBE_ROWS], head=teacher.head, threshold=threshold, name=name)
                    peers[name] = judged(student, path, average_bits=float(PEERS[name]), activation_bits=8, input_bits=8)
                measured = peers[name]
            else:
                result = teacher.quantized(as_method(entry), budget, progress=False)
                path = folder / f"{name}-{budget:g}.onnx"
                result.to_onnx(path)
                measured = judged(
                    result.predictor(path),
                    path,
                    average_bits=result.plan.average_bits,
                    activation_bits=result.activation_bits,
                    input_bits=result.input_bits,
                )
                measured["bits"] = result.bits
            table.setdefault(str(budget), {})[name] = measured
            seconds[f"{name}@{budget:g}"] = time.perf_counter() - started
    return Comparison(dataset, seed, people.to_dict(labels), table, str(float(budgets[0])), seconds=seconds)


def audit(
    f: nn.Module | str | os.PathLike[str] | Callable[..., Any] | Predictor,
    f_q: nn.Module | str | os.PathLike[str] | Callable[..., Any] | Predictor,
    people: pd.DataFrame | torch.Tensor,
    action_set: ActionSpace,
    *,
    issued: pd.DataFrame | torch.Tensor | None = None,
    groups: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    label: str | Sequence[int] | None = None,
    target: Target | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    protocol: Protocol | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AuditReport:
    """What replacing ``f`` by ``f_q`` does to people's recourse.

    Args:
        f: the model that recourse was issued on: an ONNX file, a module, or a callable.
        f_q: the model that is deployed, likewise.
        people: raw features (a DataFrame; the action set encodes it) or columns (a tensor).
        action_set: what people can change.
        issued: advice already given, one row per person in the same form as ``people``; checked first.
        groups: columns of ``people``, or name -> one value per person.
        label: column of ``people`` with the true class, or one class per person; None leaves accuracy out.
        target: class that recourse leads to; by default the action set's ``favourable``.
        head, threshold: of both models.

    Raises:
        DataError, ActionSetError: rows that cannot be used.
        ModelError, FileError: a model that cannot be read or run.
    """
    given, labels = _beside(people, groups, label)
    modules = [entry for entry in (f, f_q) if isinstance(entry, nn.Module)]
    with undisturbed(*modules, threads=1):
        return run_audit(
            f,
            f_q,
            people,
            _space(action_set),
            target=target,
            labels=labels,
            groups=given,
            issued=issued,
            head=head,
            threshold=threshold,
            protocol=protocol,
            seed=seed,
            progress=progress,
        )


def _space(action_set: ActionSpace) -> ActionSpace:
    if isinstance(action_set, ActionSet) and not action_set.is_encoded:
        raise ActionSetError(
            "this action set speaks of raw features; call action_set.encoded_by(your fitted ColumnTransformer), so that it knows the "
            "model's columns"
        )
    if not isinstance(action_set, ActionSpace):
        raise ActionSetError(
            f"{type(action_set).__name__} is no action space; give a cfptq.ActionSet, or an object with the methods of "
            "cfptq.actions.ActionSpace"
        )
    return action_set


def _beside(
    people: pd.DataFrame | torch.Tensor, groups: Sequence[str] | Mapping[str, Sequence[Any]], label: str | Sequence[int] | None
) -> tuple[dict[str, Any], Any]:
    """Group values and labels: looked up in the frame where they are names of its columns."""

    def column(name: str) -> Any:
        if not isinstance(people, pd.DataFrame):
            raise DataError(f"{name!r} names a column, but people is no DataFrame; give the values themselves")
        if name not in people.columns:
            raise DataError(f"people has no column {name!r}; its columns are {', '.join(map(str, people.columns))}")
        return people[name].to_numpy()

    found = dict(groups) if isinstance(groups, Mapping) else {name: column(name) for name in groups}
    return found, column(label) if isinstance(label, str) else label
