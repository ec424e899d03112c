"""The public functions, each of which checks its arguments and calls the pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from cfptq.actions import ActionSpace
from cfptq.allocation import Budget
from cfptq.auditing import AuditReport, Protocol, run_audit
from cfptq.backends.toolchains import TOOLCHAINS
from cfptq.io.arguments import PATH, check_arguments
from cfptq.io.progress import allow_progress
from cfptq.network import Head, Predictor, preserved_state
from cfptq.network.several_inputs import SeveralInputs
from cfptq.pipeline.bit_search import find_fewest_bits
from cfptq.pipeline.comparison import COMPARED, ComparedMethod, Comparison, check_budgets, check_methods, compare_methods
from cfptq.pipeline.inputs import (
    AUDIT,
    CALIBRATE,
    COMPARE,
    QAT,
    TUNING_SCORE,
    check_action_space,
    check_budget_or_limit,
    check_layers,
    check_seed,
    look_up_columns,
)
from cfptq.pipeline.method import Groups, Method
from cfptq.pipeline.method_presets import as_method
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.raw_inputs import read_model
from cfptq.pipeline.result import Result
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.pipeline.train_task import ALL_ROWS, CALIBRATION_ROWS, train_with
from cfptq.pipeline.tuning import TuningScore, build_tuning_score
from cfptq.quantize import Activations, InputBits, check_keep
from cfptq.recourse import Target
from cfptq.training import History, QatMethod, RunFiles, Trainer, as_qat_method

__all__ = ["COMPARED", "DEFAULT_METHOD", "TOOLCHAINS", "audit", "calibrate", "compare", "load", "qat", "tuning_score"]

DEFAULT_METHOD = "faithful"

#: Average bits of ``calibrate`` where neither a budget nor a limit on Validity Drop is given.
DEFAULT_BUDGET = 4.0


@check_arguments(**CALIBRATE)
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
    keep: Sequence[str] | None = None,
    reserve: float | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    output: str | None = None,
    inputs: Mapping[str, Sequence[str | int]] | None = None,
    max_rows: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Quantize ``model`` so that the recourse that its users were given is preserved. The model itself is left as it was.

    Args:
        model: a trained classifier that takes (N, ...) float32 and puts out logits, one logit, or probabilities: a module, the path of
            an ONNX file, or a fitted scikit-learn pipeline that ends in ``MLPClassifier`` or ``LogisticRegression``. A pipeline places an
            action set on raw features by its own preprocessing, and class indices are those of its ``classes_``. What is exported from
            an ONNX file keeps the names of its input and output.
        calib_loader: rows to calibrate on, in batches of tensors, (x, y) pairs, dicts or arrays.
        action_set: what people can change, encoded so that it speaks of the model's columns.
        target: the class that recourse leads to: one for all, one per calibration row, or a rule (rows, logits) -> classes. By default
            it is the action set's ``favourable``.
        budget: average bits per weight, or a ``cfptq.Budget``. The default is 4.0 where ``max_validity_drop`` is not given.
        max_validity_drop: a share from 0 to 1. Instead of a budget, it asks for the fewest bits whose Validity Drop on held-out rows is
            at most this.
        method: a preset's name or a ``cfptq.Method``. The default is "faithful".
        layers: layer name -> bits that it must have. By default the method chooses all.
        activation_bits: bits of hidden tensors: 8, 16, or 32 for float. By default the method's own.
        input_bits: bits of the model's input: 8, 16, 32, or "two-step"; see ``cfptq.quantize.Activations``. By default the method's
            own.
        portable: keep weights behind integer inputs within ±63 (7 bits), so that the file is right on processors without VNNI too. False
            allows the full range of 8 bits.
        repair: adjust the last layer at the end until calibration recourse that fails holds. The change is kept only if it does not harm
            held-out people; ``result.repair`` reports on both.
        groups: reweight the groups of people so that the worst group's Validity Drop falls (eq. 33): a feature of the action set, or a
            function from rows (N, ...) to N labels. ``result.worst_group`` reports on each group. By default all weigh alike.
        keep: structure of the weights that is kept. "zeros" keeps every exact zero at 0, and "signs" keeps every integer from the opposite
            sign of its weight. By default the method's own, which is both. ``()`` keeps nothing.
        reserve: what is added to the margins of accepted rows, as a share of the median margin. More recourse then survives, and more
            people are accepted than by the full-precision model; ``result.notes`` says how many. By default the method's own, which is 0.
        head: what the model puts out. By default it is inferred from the output.
        threshold: decision threshold on the probability of a binary model. By default what an ONNX file records,
            or else the larger logit decides.
        output: name of the output with the class scores, for an ONNX file with several.
        inputs: columns of each input of a module whose forward takes several, as names of the action set's columns or numbers, as in
            ``{"x_num": [...], "x_cat": [...]}``. An input is float32 or int64, whichever the module runs with. The exported file has the
            same inputs. By default two inputs are the columns that hold codes of categories and the others.
        max_rows: most calibration rows kept. From a longer loader they are drawn evenly.
        seed: seed of the calibration draw.
        progress: whether a progress bar may be shown.

    Returns:
        The quantized model with everything that led to it.

    Raises:
        ConfigurationError: an argument or a method makes no sense.
        DataError: the rows cannot be used, or no target class is known.
        ActionSetError: rows break the action set's rules, or it is not encoded.
        ModelError: the model cannot be captured, or has nothing to quantize.
        BudgetError: the budget or the limit cannot be met.
    """
    settings = TaskSettings(target, head, threshold, max_rows, seed, progress)
    check_layers(layers)
    check_budget_or_limit(budget, max_validity_drop)
    chosen = as_method(method).with_activations(activation_bits, input_bits)
    chosen = replace(
        chosen,
        repair=repair or chosen.repair,
        groups=groups if groups is not None else chosen.groups,
        keep=chosen.keep if keep is None else check_keep(keep),
        reserve=chosen.reserve if reserve is None else float(reserve),
    )
    read = read_model(model, output, inputs, action_set)
    module, space = read.module, check_action_space(read.place(action_set))
    with allow_progress(progress), preserved_state(module, threads=1):
        task = build_task(module, read.index_labels(calib_loader), space, settings)
        if max_validity_drop is not None:
            result = find_fewest_bits(task, chosen, max_validity_drop, pinned=layers, portable=portable, progress=progress)
        else:
            limit = DEFAULT_BUDGET if budget is None else budget
            result = quantize_with(task, chosen, limit, pinned=layers, portable=portable, progress=progress)
    parts = module.parts if isinstance(module, SeveralInputs) else None
    return replace(result.with_names_of(module), classes=read.classes, inputs=parts)


@check_arguments(**QAT)
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
    keep: Sequence[str] | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    output: str | None = None,
    max_rows: int = ALL_ROWS,
    calibration_rows: int = CALIBRATION_ROWS,
    checkpoint: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    fit: Callable[[Trainer], History] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Quantize ``model`` by counterfactual-faithful training (Section 4) or one of its baselines. The model is left as it was.

    A tenth of the rows is held out and chooses the epoch that is kept. It is the epoch with the lowest loss among those that move the
    favourable rate by at most half a point (``cfptq.training.Schedule``), or else the training-free start. ``result.training``
    gives the reason.

    A long run writes its state to ``checkpoint`` and its figures to ``log``. After an interruption, the same call resumes it and ends
    with the same result on the same machine and versions::

        result = cfptq.qat(model, loader, actions, checkpoint="run.safetensors", log="run.csv")

    Several processes share every batch where a script sets up their group first, and end with the same result. It is that of a single
    process within rounding. Sweeps and the student's own recourse (``cfq-qat``, ``cfq-learned``) may end at other integers of equal
    quality. ``torchrun --nproc-per-node=2 train.py`` runs such a script::

        torch.distributed.init_process_group("gloo")
        result = cfptq.qat(model, loader, actions, checkpoint="run.safetensors")  # all rows, in every process
        if torch.distributed.get_rank() == 0:
            result.to_onnx("model.onnx")
        torch.distributed.destroy_process_group()

    Args:
        model: a trained classifier that takes (N, ...) float32 and puts out logits, one logit, or probabilities: a module, or the path of
            an ONNX file.
        train_loader: training rows with their labels, in batches. Without labels the model's own decisions stand in.
        action_set: what people can change, encoded so that it speaks of the model's columns.
        target: the class that recourse leads to: one for all, one per training row, or a rule (rows, logits) -> classes. By default it is
            the action set's ``favourable``.
        budget: average bits per weight, or a ``cfptq.Budget``. The default is 4.0.
        method: a preset of ``cfptq.training.QAT_METHODS``, or a ``cfptq.training.QatMethod``. The default is "cfq-qat".
        groups: one value per training row, in the loader's order, for objectives on the worst group (eq. 33). By default none.
        layers: layer name -> bits that it must have. By default the method chooses all.
        activation_bits: bits of hidden tensors: 8, 16, or 32 for float.
        input_bits: bits of the model's input. By default it is chosen by what the first layer costs.
        portable: keep weights behind integer inputs within ±63 (7 bits), so that the file is right on processors without VNNI too. False
            allows the full range of 8 bits.
        keep: structure of the weights that is kept. "zeros" keeps every exact zero at 0, and "signs" keeps every integer from the opposite
            sign of its weight. By default the method's own, which is both in ``cfq-qat`` and nothing
            in the presets that reproduce the paper's training. ``()`` keeps nothing.
        head: what the model puts out. By default it is inferred from the output.
        threshold: decision threshold on the probability of a binary model. By default what an ONNX file records,
            or else the larger logit decides.
        output: name of the output with the class scores, for an ONNX file with several.
        max_rows: most training rows kept. By default all.
        calibration_rows: most rows that the training-free start is calibrated on.
        checkpoint: file that is replaced after every epoch, and from which the same call resumes. By default none.
        log: CSV file with one line an epoch: the terms of the loss, the loss on held-out rows, drift, flips, Validity Drop, whether the
            epoch was eligible, and the bits. Validity Drop is empty while bits are searched. By default none.
        fit: runs the prepared training, by default the package's own loop. ``cfptq.training.lightning.fit_with(trainer)`` hands it to
            Lightning, which then writes its own checkpoints and logs.
        seed: seed of everything that is drawn.
        progress: whether a progress bar may be shown.

    Returns:
        The quantized model with its training history.

    Raises:
        ConfigurationError: an argument or a method makes no sense.
        DataError: the rows or groups cannot be used, or no target class is known.
        ActionSetError: rows break the action set's rules, or it is not encoded.
        ModelError: the model cannot be captured, has nothing to quantize, or training diverges.
        BudgetError: the budget cannot be met.
        FileError: the checkpoint is another run's.
    """
    settings = TaskSettings(target, head, threshold, max_rows, seed, progress)
    check_layers(layers)
    chosen = as_qat_method(method)
    chosen = chosen if keep is None else replace(chosen, keep=check_keep(keep))
    read = read_model(model, output)
    module, space = read.module, check_action_space(read.place(action_set))
    with allow_progress(progress), preserved_state(module, threads=1):
        task = build_task(module, read.index_labels(train_loader), space, settings)
        result = train_with(
            task,
            chosen,
            budget,
            groups=groups,
            pinned=layers,
            activations=Activations(bits=activation_bits, input_bits=input_bits, clip=False),
            calibration_rows=calibration_rows,
            portable=portable,
            files=RunFiles(checkpoint, log),
            fit=fit,
            progress=progress,
        )
    return replace(result.with_names_of(module), classes=read.classes)


@check_arguments(**COMPARE)
def compare(
    model: nn.Module | str | os.PathLike[str],
    calib_loader: Iterable[Any],
    test_loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    methods: ComparedMethod | Sequence[ComparedMethod] = COMPARED,
    budgets: float | Sequence[float] = (4.0,),
    target: Target | None = None,
    groups: Mapping[str, Sequence[Any]] | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    output: str | None = None,
    portable: bool = True,
    max_rows: int = 4096,
    protocol: Protocol | None = None,
    seed: int = 0,
    dataset: str = "data",
    keep: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Quantize ``model`` by each method and measure accuracy and recourse of the deployed models on the same rows.

    A toolchain that is not installed, or cannot quantize the model, is a row of the table with the reason.

    Args:
        model: a trained classifier that takes (N, ...) float32 and puts out logits, one logit, or probabilities: a module, or the path of
            an ONNX file.
        calib_loader: rows to calibrate on, in batches. Methods that train are trained on them too, so that all see the same people.
        test_loader: the people to judge by, in batches. With labels, accuracy is reported too.
        action_set: what people can change, encoded so that it speaks of the model's columns.
        methods: names of presets of ``calibrate`` or ``qat``, names of toolchains (``TOOLCHAINS``), or
            ``cfptq.Method`` and ``cfptq.training.QatMethod`` objects; or one alone. The default is ``COMPARED``.
        budgets: average bits per weight, one number or several. The first is the headline. Toolchains have one width and ignore it.
        target: the class that recourse leads to: one for all, or a rule (rows, logits) -> classes. By default it is the action set's
            ``favourable``.
        groups: name -> one value per test row, for Validity Drop by group. By default none.
        head: what the model puts out. By default it is inferred from the output.
        threshold: decision threshold on the probability of a binary model. By default what an ONNX file records,
            or else the larger logit decides.
        output: name of the output with the class scores, for an ONNX file with several.
        portable: keep weights behind integer inputs within ±63 (7 bits). It does not apply to toolchains.
        max_rows: most calibration rows kept. From a longer loader they are drawn evenly.
        protocol: evaluation settings. By default the standard protocol.
        seed: seed of the calibration draw and of the population's shuffle.
        dataset: name of the data in tables and files.
        keep: folder that the quantized models are written to. By default they are deleted.
        progress: whether a progress bar may be shown.

    Returns:
        The table of methods, which also writes ``results.json``.

    Raises:
        ConfigurationError: a method is unknown, or an argument makes no sense.
        DataError: the rows or groups cannot be used, or no target class is known.
        ActionSetError: rows break the action set's rules, or it is not encoded.
        ModelError: the model cannot be captured, or has nothing to quantize.
        BudgetError: a budget is not a positive number, or cannot be met.
    """
    settings = TaskSettings(target, head, threshold, max_rows, seed, progress)
    listed, limits = check_methods(methods), check_budgets(budgets)
    read = read_model(model, output)
    module, space = read.module, check_action_space(read.place(action_set))
    with allow_progress(progress), preserved_state(module, threads=1):
        return compare_methods(
            module,
            read.index_labels(calib_loader),
            read.index_labels(test_loader),
            space,
            listed,
            limits,
            settings,
            groups=groups,
            portable=portable,
            protocol=protocol or Protocol(),
            dataset=dataset,
            keep=keep,
        )


@check_arguments(**TUNING_SCORE)
def tuning_score(
    model: nn.Module | str | os.PathLike[str],
    loader: Iterable[Any],
    action_set: ActionSpace,
    *,
    max_accuracy_drop: float = 0.01,
    target: Target | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    output: str | None = None,
    max_rows: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> TuningScore:
    """Return an evaluation function for a tuner such as Neural Compressor's ``autotune``, Validity Drop under an accuracy floor.

    Args:
        model: the full-precision classifier: a module, or the path of an ONNX file.
        loader: people to judge by, in batches, other than those that were calibrated on.
        action_set: what people can change, encoded so that it speaks of the model's columns.
        max_accuracy_drop: largest loss of accuracy that meets the floor, a share from 0 to 1.
        target: the class that recourse leads to: one for all, one per row, or a rule (rows, logits) -> classes. By default it is the
            action set's ``favourable``.
        head: what the model puts out. By default it is inferred from the output.
        threshold: decision threshold on the probability of a binary model. By default what an ONNX file records,
            or else the larger logit decides.
        output: name of the output with the class scores, for an ONNX file with several.
        max_rows: most rows kept. From a longer loader they are drawn evenly.
        seed: seed of the draw.
        progress: whether a progress bar may be shown.

    Returns:
        A function from a candidate module to its score.

    Raises:
        ConfigurationError: an argument makes no sense.
        DataError: the rows cannot be used, no target class is known, or nobody among the rows has recourse.
        ActionSetError: rows break the action set's rules, or it is not encoded.
        ModelError: the model cannot be captured, or has nothing to quantize.
    """
    settings = TaskSettings(target, head, threshold, max_rows, seed, progress)
    read = read_model(model, output)
    module, space = read.module, check_action_space(read.place(action_set))
    with allow_progress(progress), preserved_state(module, threads=1):
        task = build_task(module, read.index_labels(loader), space, settings)
        return build_tuning_score(task, max_accuracy_drop, progress=progress)


@check_arguments(**AUDIT)
def audit(
    f: nn.Module | str | os.PathLike[str] | Callable[..., Any] | Predictor,
    f_q: nn.Module | str | os.PathLike[str] | Callable[..., Any] | Predictor,
    people: pd.DataFrame | torch.Tensor,
    action_set: ActionSpace,
    *,
    issued: pd.DataFrame | torch.Tensor | None = None,
    id: str | None = None,
    strict: bool = False,
    groups: str | Sequence[str] | Mapping[str, Sequence[Any]] = (),
    label: str | Sequence[int] | None = None,
    target: Target | None = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    output: str | None = None,
    protocol: Protocol | None = None,
    prove_within: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AuditReport:
    """Measure how people's recourse changes when ``f`` is replaced by ``f_q``.

    Args:
        f: the model that recourse was issued on: an ONNX file, a module, or a callable.
        f_q: the model that is deployed: an ONNX file, a module, or a callable.
        people: raw features (a DataFrame, which the action set encodes) or columns (a tensor).
        action_set: what people can change.
        issued: letters already sent, in the form of ``people``. They are checked first. An empty cell means that the value stays, and a
            person may have several letters. By default recourse is solved.
        id: column, or name of the index, that identifies a person in ``people`` and ``issued``. By default the index, where there is
            one, or else the position, if immutable features then agree.
        strict: refuse every table that the report would have a remark on, such as unknown categories or imputed values.
        groups: one or several columns of ``people``, or name -> one value per person. By default none.
        label: column of ``people`` with the true class, or one class per person. By default accuracy is left out.
        target: the class that recourse leads to: one for all, one per person, or a rule (rows, logits) -> classes. By default it is the
            action set's ``favourable``.
        head: what both models put out. By default it is inferred from the output.
        threshold: decision threshold of both models on the probability. By default what the ONNX files record, or else the larger logit
            decides.
        output: name of the output with the class scores, for ONNX files with several. A file without it is read as it is.
        protocol: evaluation settings. By default the standard protocol.
        prove_within: radius of deviations from the advice, in the columns that the models see. Within it, recourse is estimated and
            proven to hold, which takes some seconds for 2,000 people. By default estimates and proofs are left out.
        seed: seed of the population's shuffle and of resampling.
        progress: whether a progress bar may be shown.

    Returns:
        The report, with an interval for every measure.

    Raises:
        ConfigurationError: an argument makes no sense.
        DataError: the rows cannot be used, or a named column is missing.
        ActionSetError: rows break the action set's rules, or it is not encoded.
        ModelError: a model cannot be run.
        FileError: a file cannot be read.
    """
    check_seed(seed)
    given, labels = look_up_columns(people, groups, label)
    modules = [entry for entry in (f, f_q) if isinstance(entry, nn.Module)]
    with allow_progress(progress), preserved_state(*modules, threads=1):
        return run_audit(
            f,
            f_q,
            people,
            check_action_space(action_set),
            target=target,
            labels=labels,
            groups=given,
            issued=issued,
            id=id,
            strict=strict,
            head=head,
            threshold=threshold,
            output=output,
            protocol=protocol,
            prove_within=prove_within,
            seed=seed,
            progress=progress,
        )


@check_arguments(folder=PATH)
def load(folder: str | os.PathLike[str]) -> Result:
    """Read a saved result, which exports without the original model.

    Args:
        folder: a folder that ``cfptq.Result.save`` wrote.

    Raises:
        FileError: a file is missing, cut off, altered, or not what it should be. Nothing is unpickled.
    """
    return Result.load(folder)
