"""The front door: calibrate, compare, audit. Each is the pipeline of the package on one screen."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from cfptq.actions import ActionSet, ActionSpace
from cfptq.allocation import Budget
from cfptq.auditing import AuditReport, Protocol, evaluate, reference_recourse, rows_by_group, run_audit
from cfptq.backends.latency import measure_latency
from cfptq.backends.toolchains import TOOLCHAINS
from cfptq.calibration import draw_rows
from cfptq.errors import ActionSetError, ConfigurationError, DataError, ModelError
from cfptq.network import Head, OnnxModule, Predictor, preserved_state, to_onnx_model
from cfptq.network.onnx.session import describe_runtime, describe_saturation
from cfptq.pipeline.comparison import Comparison
from cfptq.pipeline.deploy import deploy_all
from cfptq.pipeline.method import METHODS, Groups, Method, as_method
from cfptq.pipeline.result import Result, load
from cfptq.pipeline.task import prepare
from cfptq.pipeline.train_task import ALL_ROWS, CALIBRATION_ROWS, learn
from cfptq.pipeline.tuning import TuningScore, score_by
from cfptq.quantize import Activations, InputBits
from cfptq.recourse import Target
from cfptq.training import QAT_METHODS, Files, History, QatMethod, Trainer, as_qat_method

__all__ = ["DEFAULT_METHOD", "TOOLCHAINS", "audit", "calibrate", "compare", "load", "qat", "tuning_score"]

DEFAULT_METHOD = "faithful"

#: What ``compare`` compares unless told otherwise.
COMPARED = (
    "ort-int8",
    "ort-int4",
    "pt2e-int8",
    "fx-int8",
    "inc-int8",
    "mixed-ptq",
    "cf-ptq-calibration",
    "cf-ptq-allocation",
    "cf-ptq",
    "faithful",
)


def calibrate(
    model: nn.Module | str | os.PathLike[str],
    calib_loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    target: Target | None = None,
    budget: Budget | float | None = None,
    max_validity_drop: float | None = None,
    method: str | Method = DEFAULT_METHOD,
    layers: Mapping[str, int] | None = None,
    activation_bits: int | None = None,
    input_bits: InputBits = None,
    portable: bool = True,
    repair: bool = False,
    groups: Groups | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    max_rows: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Quantize ``model`` so that the recourse its users were given survives. The model itself is left as it was.

    Args:
        model: a trained classifier: (N, ...) float32 in, logits, one logit, or probabilities out; a module, or the path of an ONNX
            file, whose input and output keep their names in what is exported.
        calib_loader: rows to calibrate on: tensors, (x, y) pairs, dicts or arrays; at most ``max_rows`` are kept, drawn evenly.
        action_set: what people can change; encoded, so that it speaks of the model's columns.
        target: class that recourse leads to, one per calibration row, or a rule (rows, decisions) -> classes. By default
            the action set's ``favourable``.
        budget: average bits per weight, or a :class:`cfptq.Budget`. 4.0 where neither it nor ``max_validity_drop`` is given.
        max_validity_drop: instead of a budget, the fewest bits whose Validity Drop on rows set aside is at most this.
        method: a preset's name or a :class:`cfptq.Method`.
        layers: bits that named layers must have.
        activation_bits: 8, 16, or 32 for float; by default what the method has.
        input_bits: the same for the model's input, or "two-step"; see :class:`cfptq.quantize.Activations`.
        portable: keep weights behind integer inputs within ±63 (7 bits), so that the file is right on processors without VNNI too. False
            asks for the full range of 8 bits there.
        repair: at the end, adjust the last layer until calibration recourse that fails holds, where people set aside gain by it too;
            ``result.repair`` says what it did to both.
        groups: weigh rows so that the group with the worst Validity Drop fares better (eq. 33): a feature of the action set, or a
            function from rows (N, ...) to N labels; ``result.worst_group`` has each group before and after.
        head, threshold: what the model puts out (inferred where None) and where a binary model decides.
        seed: of the calibration draw.

    Raises:
        DataError: rows that cannot be used; no target class.
        ActionSetError: rows that break the action set's rules.
        ModelError: a model that cannot be captured, or with nothing to quantize.
        BudgetError: a budget that cannot be met.
    """
    _check(seed, layers)
    if budget is not None and max_validity_drop is not None:
        raise ConfigurationError("give a budget or max_validity_drop, not both: the one fixes the bits, the other finds them")
    chosen = as_method(method).with_activations(activation_bits, input_bits)
    chosen = replace(chosen, repair=repair or chosen.repair, groups=groups if groups is not None else chosen.groups)
    module = _module(model)
    with preserved_state(module, threads=1):
        teacher = prepare(
            module,
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
            result = teacher.fewest_bits(chosen, max_validity_drop, pinned=layers, portable=portable, progress=progress)
        else:
            result = teacher.quantized(chosen, 4.0 if budget is None else budget, pinned=layers, portable=portable, progress=progress)
    return _named(result, module)


def qat(
    model: nn.Module | str | os.PathLike[str],
    train_loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    target: Target | None = None,
    budget: Budget | float = 4.0,
    method: str | QatMethod = "cfq-qat",
    groups: Sequence[Any] | None = None,
    layers: Mapping[str, int] | None = None,
    activation_bits: int = 8,
    input_bits: InputBits = None,
    portable: bool = True,
    head: Head | str | None = None,
    threshold: float | None = None,
    max_rows: int = ALL_ROWS,
    calibration_rows: int = CALIBRATION_ROWS,
    checkpoint: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    fit: Callable[[Trainer], History] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Quantize ``model`` by counterfactual-faithful training (Section 4), or by one of its baselines. The model is left as it was.

    A tenth of the rows is set aside and chooses the epoch that is kept: the lowest loss there among epochs that move the share of people
    decided in their favour by at most half a point (:class:`cfptq.training.Schedule`), or else the training-free start.
    ``result.training`` says which, and ``print`` of it why.

    A long run keeps itself in ``checkpoint`` and tells of itself in ``log``; after a kill, the same call goes on and ends as if nothing
    had happened::

        result = cfptq.qat(model, loader, actions, checkpoint="run.safetensors", log="run.csv")

    Several processes share every batch where a script sets up their group first; they end with one and the same result. It is that of a
    single process within rounding, but for sweeps and for the student's own recourse (``cfq-qat``, ``cfq-learned``), which may end at other
    integers that are as good.
    ``torchrun --nproc-per-node=2 train.py`` runs it::

        torch.distributed.init_process_group("gloo")
        result = cfptq.qat(model, loader, actions, checkpoint="run.safetensors")  # all rows, in every process
        if torch.distributed.get_rank() == 0:
            result.to_onnx("model.onnx")
        torch.distributed.destroy_process_group()

    Args:
        model, action_set, target, budget, layers, portable, head, threshold: as in :func:`calibrate`.
        train_loader: training rows with their labels, all of them kept; without labels the model's own decisions stand in.
        method: a preset of :data:`cfptq.training.QAT_METHODS`, or a :class:`cfptq.training.QatMethod`.
        groups: one value per training row, in the loader's order, for objectives on the worst group (eq. 33).
        activation_bits: of hidden tensors. input_bits: of the input; None chooses by what the first layer costs.
        max_rows: most training rows kept. calibration_rows: rows that the training-free start is calibrated on.
        checkpoint: a file that is replaced after every epoch; the same call goes on from it after a kill, to the same result.
        log: a CSV file, one line an epoch: the loss's terms, then the loss on rows set aside, drift, flips and Validity Drop (empty
            while widths are searched), whether the epoch was eligible, and the widths.
        fit: runs the prepared training, by default the package's own loop; ``cfptq.training.lightning.fit_with(trainer)`` hands it to
            Lightning, which then keeps its own checkpoints and logs. Under ``torchrun`` the loop shares every batch among the processes.
        seed: of everything that is drawn.

    Raises:
        As :func:`calibrate`; FileError where the checkpoint is another run's; ModelError where training diverges.
    """
    _check(seed, layers)
    chosen = as_qat_method(method)
    module = _module(model)
    with preserved_state(module, threads=1):
        teacher = prepare(
            module,
            train_loader,
            _space(action_set),
            target=target,
            seed=seed,
            max_rows=max_rows,
            head=head,
            threshold=threshold,
            progress=progress,
        )
        result = learn(
            teacher,
            chosen,
            budget,
            groups=groups,
            pinned=layers,
            activations=Activations(bits=activation_bits, input_bits=input_bits, clip=False),
            calibration_rows=calibration_rows,
            portable=portable,
            files=Files(checkpoint, log),
            fit=fit,
            progress=progress,
        )
    return _named(result, module)


def compare(
    model: nn.Module | str | os.PathLike[str],
    calib_loader: Iterable[Any],
    test_loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    methods: str | Method | QatMethod | Sequence[str | Method | QatMethod] = COMPARED,
    budgets: float | Sequence[float] = (4.0,),
    target: Target | None = None,
    groups: Mapping[str, Sequence[Any]] | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    portable: bool = True,
    max_rows: int = 4096,
    protocol: Protocol | None = None,
    seed: int = 0,
    dataset: str = "data",
    keep: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Quantize ``model`` by each method and measure, in the toolchain it is deployed with and on the same rows, what each did to recourse.

    A toolchain that is not installed, or cannot quantize the model, is a row that says so.

    Args:
        model, calib_loader, action_set, target, head, threshold, portable, max_rows, seed: as in :func:`calibrate`.
        test_loader: the people to judge by; with labels, accuracy is reported too.
        methods: names of presets (of :func:`calibrate` or :func:`qat`) or of toolchains' own quantization (:data:`TOOLCHAINS`), or
            :class:`cfptq.Method` and :class:`cfptq.training.QatMethod` objects; or one alone. Those that train do so on the calibration
            rows, so that all methods see the same people; raise ``max_rows`` for their sake.
        budgets: average bits, one number or several; the first is the headline. Toolchains' own methods have one width and ignore it.
        groups: name -> one value per test row, for Validity Drop by subgroup.
        protocol: evaluation settings; the standard protocol by default.
        dataset: a word for tables and files.
        keep: folder that the quantized models are written to.

    Raises:
        ConfigurationError: an unknown method. BudgetError: a budget that is no number. Otherwise as :func:`calibrate`.
    """
    _check(seed)
    methods = (methods,) if isinstance(methods, str | Method | QatMethod) else methods
    limits = [float(Budget.average(bits).amount) for bits in (budgets if isinstance(budgets, Iterable) else (budgets,))]
    names = [entry if isinstance(entry, str) else entry.name for entry in methods]
    unknown = [entry for entry in methods if isinstance(entry, str) and entry not in (*METHODS, *QAT_METHODS, *TOOLCHAINS)]
    if unknown:
        raise ConfigurationError(
            f"there is no method {unknown[0]!r} to compare; choose from {', '.join([*TOOLCHAINS, *METHODS, *QAT_METHODS])}"
        )
    if not limits or len(set(names)) != len(names):
        raise ConfigurationError("compare needs at least one budget, and each method once")
    rules = protocol or Protocol()
    space = _space(action_set)
    module = _module(model)
    with preserved_state(module, threads=1), contextlib.ExitStack() as stack:
        if keep is not None:
            Path(keep).mkdir(parents=True, exist_ok=True)
        folder = Path(keep) if keep is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.perf_counter()
        teacher = prepare(
            module,
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
        rows_by_group(groups, rows)  # refused before the work, not after it
        people = reference_recourse(teacher.predictor, rows, space, teacher.target, rules, seed, progress=progress)
        prepared = time.perf_counter() - started

        def judged(student: Predictor, path: Path, **deployed: Any) -> dict[str, Any]:
            metrics = evaluate(teacher.predictor, student, people, rows, labels, space, groups, progress=False)
            return metrics.to_dict(**deployed, stored_bytes=path.stat().st_size)

        done = deploy_all(teacher, methods, limits, folder, judged, portable, progress)
        fp32 = to_onnx_model(teacher.network).SerializeToString(deterministic=True)
        latency = measure_latency({"fp32": fp32, **done.runs}, rows)
        eager = ", ".join(name for name, run in done.runs.items() if callable(run))
        slow = [f"{eager}: timed as the toolchain gives it; torch.compile is what makes it fast"] if eager else []
    return Comparison(
        dataset,
        seed,
        people.to_dict(labels),
        done.budgets,
        str(limits[0]),
        unavailable=done.unavailable,
        seconds={"teacher": prepared, **done.seconds},
        latency=latency,
        warnings=(*_saturated(done.budgets), *slow),
        runtime=describe_runtime(),
    )


def tuning_score(
    model: nn.Module | str | os.PathLike[str],
    loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    max_accuracy_drop: float = 0.01,
    target: Target | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    max_rows: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> TuningScore:
    """An evaluation function for a tuner such as Neural Compressor's ``autotune``: Validity Drop under an accuracy floor.

    Args:
        model, action_set, target, head, threshold, max_rows, seed: as in :func:`calibrate`.
        loader: people to judge by, other than those that were calibrated on.
        max_accuracy_drop: the floor lies this far below the model's own accuracy.

    Raises:
        DataError: nobody among the rows has recourse. Otherwise as :func:`calibrate`.
    """
    _check(seed)
    module = _module(model)
    with preserved_state(module, threads=1):
        teacher = prepare(
            module,
            loader,
            _space(action_set),
            target=target,
            seed=seed,
            max_rows=max_rows,
            head=head,
            threshold=threshold,
            progress=progress,
        )
        return score_by(teacher, max_accuracy_drop, progress=progress)


def audit(
    f: nn.Module | str | os.PathLike[str] | Callable[..., Any] | Predictor,
    f_q: nn.Module | str | os.PathLike[str] | Callable[..., Any] | Predictor,
    people: pd.DataFrame | torch.Tensor,
    action_set: ActionSpace,
    *,
    issued: pd.DataFrame | torch.Tensor | None = None,
    groups: str | Sequence[str] | Mapping[str, Sequence[Any]] = (),
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
        groups: one or several columns of ``people``, or name -> one value per person.
        label: column of ``people`` with the true class, or one class per person; None leaves accuracy out.
        target: class that recourse leads to; by default the action set's ``favourable``.
        head, threshold: of both models.

    Raises:
        DataError, ActionSetError: rows that cannot be used.
        ModelError, FileError: a model that cannot be read or run.
    """
    _check(seed)
    given, labels = _beside(people, groups, label)
    modules = [entry for entry in (f, f_q) if isinstance(entry, nn.Module)]
    with preserved_state(*modules, threads=1):
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


def _saturated(budgets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """One sentence for each compared file that a default session decides otherwise on this processor."""
    for budget, methods in budgets.items():
        for name, entry in methods.items():
            rows = entry["counts"]["decided_otherwise_by_default_session"]
            if rows:
                yield describe_saturation(f"{name} at {budget} bits", rows, entry["counts"]["rows"])


def _check(seed: int, layers: Mapping[str, int] | None = None) -> None:
    """Refuse, before anything runs, what would fail much later."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed is {seed!r}; give a whole number from 0 to 2**32 - 1")
    if not (layers is None or isinstance(layers, Mapping)):
        raise ConfigurationError(f"layers is {layers!r}; give the bits of each layer by its name, such as layers={{'head': 8}}")


def _module(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    if isinstance(model, str | os.PathLike):
        return OnnxModule(model)
    if not isinstance(model, nn.Module):
        raise ModelError(f"a {type(model).__name__} cannot be quantized; give a torch.nn.Module or the path of an ONNX file")
    return model


def _named(result: Result, module: nn.Module) -> Result:
    """The result with the tensor names of the ONNX file that the model came from."""
    return replace(result, tensor_names=(module.input_name, module.output_name)) if isinstance(module, OnnxModule) else result


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
    people: pd.DataFrame | torch.Tensor, groups: str | Sequence[str] | Mapping[str, Sequence[Any]], label: str | Sequence[int] | None
) -> tuple[dict[str, Any], Any]:
    """Group values and labels: looked up in the frame where they are names of its columns."""

    def column(name: str) -> Any:
        if not isinstance(people, pd.DataFrame):
            raise DataError(f"{name!r} names a column, but people is no DataFrame; give the values themselves")
        if name not in people.columns:
            raise DataError(f"people has no column {name!r}; its columns are {', '.join(map(str, people.columns))}")
        return people[name].to_numpy()

    names = (groups,) if isinstance(groups, str) else groups
    found = dict(names) if isinstance(names, Mapping) else {name: column(name) for name in names}
    return found, column(label) if isinstance(label, str) else label
