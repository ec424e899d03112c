"""One protocol for PyTorch modules, ONNX files and Python functions that classify rows.

``logits`` runs the artefact itself, an ONNX file in ONNX Runtime. ``surrogate`` is differentiable. Both return class logits (see
``cfptq.network.head``).
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cfptq.errors import CfptqError, DataError, ModelError, ModelWarning, name_rows
from cfptq.network.head import DecisionRule, Head, as_head, class_logits, compute_threshold_logit, decide, infer_head
from cfptq.network.onnx.file import THRESHOLD_KEY, OnnxFile, name_source, read_decision_rule, read_onnx, summarize_error
from cfptq.network.onnx.labels import describe_other_labels
from cfptq.network.onnx.module import OnnxModule
from cfptq.network.wrappers import check_inputs, unwrap

#: Rows that an artefact is given at a time without gradients. Longer tables are split, which bounds memory.
CHUNK_ROWS = 16384
#: Largest absolute class logit. Infinite ones, such as log 0, are clamped to it, so that margins stay finite.
MAX_ABS_LOGIT = 1e30
#: Rows of the example on which a model is differentiated to find whether it can be.
GRADIENT_ROWS = 2
#: Factors that scale the example, and offsets that move it. Outputs that leave [0, 1] at any of them are not probabilities.
EXAMPLE_SCALES = (-32.0, 8.0, -1e4, 1e4)
#: Largest median error of a file's differentiable twin on the example, relative to the largest output. Other twins are not used.
RELATIVE_TWIN_TOLERANCE = 0.02

#: Rows of the example that are also run alone, the largest difference from the run in one batch as a share of the largest logit (or of
#: 1), and the number of rows that may exceed it because of rounding ties.
ROWS_ALONE, BATCH_TOLERANCE, MAX_ROWS_OF_TIES = 16, 1e-3, 2

Raw = Callable[[Tensor], Tensor]


@runtime_checkable
class Predictor(Protocol):
    """Interface of a classifier."""

    @property
    def name(self) -> str:
        """Name in tables and messages."""

    @property
    def n_classes(self) -> int:
        """Number of classes C, at least 2."""

    @property
    def is_differentiable(self) -> bool:
        """True if ``surrogate`` works."""

    def logits(self, x: Tensor) -> Tensor:
        """Compute class logits ``(N, C)`` of the artefact itself, without gradient, for rows ``x`` (float32, on the CPU)."""

    def surrogate(self, x: Tensor) -> Tensor:
        """Compute class logits ``(N, C)`` that are differentiable with respect to ``x``."""


Model = nn.Module | str | os.PathLike[str] | onnx.ModelProto | Callable[..., Any] | Predictor


@dataclass(frozen=True, eq=False)
class ArtefactPredictor:
    """A ``Predictor`` that runs an artefact and, if there is one, its differentiable twin.

    Attributes:
        name: name in tables and messages.
        n_classes: number of classes C, at least 2.
        run: maps rows to the raw output of the artefact, without gradient.
        head: head of ``run``.
        threshold: probability of class 1 above which class 1 is decided. ``None`` means 0.5.
        twin: maps rows to a raw output, differentiably. ``None`` if there is no twin.
        twin_head: head of ``twin``.
        reason: reason why ``twin`` is missing; empty if there is one.
        default_run: maps rows to the raw output of an ONNX file in ONNX Runtime's default session. ``None`` unless int8 products
            saturate there on this processor, which ``run`` avoids.
    """

    name: str
    n_classes: int
    run: Raw
    head: Head
    threshold: float | None = None
    twin: Raw | None = None
    twin_head: Head | None = None
    reason: str = ""
    default_run: Raw | None = None

    @property
    def is_differentiable(self) -> bool:
        """True if ``surrogate`` works."""
        return self.twin is not None

    def logits(self, x: Tensor) -> Tensor:
        """Compute class logits ``(N, C)`` of the artefact, without gradient.

        Raises:
            DataError: ``x`` is not a float tensor, has no rows, or holds NaN.
            ModelError: the model fails on ``x``, or returns NaN or another shape than on the example.
        """
        _check_rows(x)
        with torch.no_grad():
            if len(x) <= CHUNK_ROWS:
                return self._to_class_logits(self._run_on(self.run, x.detach()), self.head, x)
            parts = torch.split(x.detach(), CHUNK_ROWS)
            return torch.cat([self._to_class_logits(self._run_on(self.run, part), self.head, part) for part in parts])

    def logits_in_default_session(self, x: Tensor) -> Tensor | None:
        """Compute class logits ``(N, C)`` in ONNX Runtime's default session, or return None if ``logits`` does so already."""
        return None if self.default_run is None else replace(self, run=self.default_run).logits(x)

    def surrogate(self, x: Tensor) -> Tensor:
        """Compute class logits ``(N, C)`` that are differentiable with respect to ``x``.

        Raises:
            ModelError: there is no differentiable twin, or it fails, or returns NaN or another shape than on the example.
        """
        if self.twin is None:
            raise ModelError(f"{self.name} has no gradient: {self.reason}. Give a differentiable twin=, or use a method that needs none.")
        return self._to_class_logits(self._run_on(self.twin, x), self.twin_head or self.head, x)

    def _run_on(self, run: Raw, x: Tensor) -> Tensor:
        """Run a model, and turn what it raises into a ModelError."""
        try:
            return run(x)
        except CfptqError:
            raise
        except Exception as error:
            raise _describe_failure(self.name, x, error) from error

    def _to_class_logits(self, output: Tensor, head: Head, x: Tensor) -> Tensor:
        logits = class_logits(output, head, self.threshold)
        if logits.shape != (len(x), self.n_classes):
            raise ModelError(
                f"{self.name} must return class logits of shape ({len(x)}, {self.n_classes}) for {len(x)} rows, "
                f"got {tuple(logits.shape)}. The number of outputs per row must not depend on the number of rows."
            )
        if not bool(torch.isfinite(logits.detach().sum())):
            rows = torch.isnan(logits.detach()).any(dim=1).nonzero().flatten().tolist()
            if rows:
                raise ModelError(
                    f"{self.name} returns NaN for rows {name_rows(rows)}. Check the model's weights and the scale of the rows."
                )
            logits = logits.clamp(-MAX_ABS_LOGIT, MAX_ABS_LOGIT)
        return logits


def as_predictor(
    model: Model,
    *,
    example: Tensor,
    head: Head | str | None = None,
    threshold: float | None = None,
    twin: nn.Module | Callable[[Tensor], Tensor] | None = None,
    name: str | None = None,
    threads: int = 1,
    output: str | None = None,
) -> Predictor:
    """Wrap a PyTorch module, an ONNX file or model, or a Python function as a ``Predictor``.

    Args:
        model: one of four. An ``nn.Module`` runs in eval mode and is not changed. An ``onnx.ModelProto`` or the path of an ONNX file
            runs in ONNX Runtime on the CPU. A function maps float32 rows (NumPy array or tensor) to an array. A predictor is
            returned unchanged.
        example: rows that the model is meant for, ``(N, ...)`` float32. They show the output's shape and head. More rows are better.
        head: kind of raw output. ``None`` takes what an ONNX file records in its metadata, or else infers it (see
            ``cfptq.network.head.infer_head``). Outputs in [0, 1] are taken as probabilities only if those of scaled rows lie there
            too.
        threshold: probability of class 1 above which class 1 is decided; two classes only. ``None`` means what an ONNX file records
            in its metadata, or else 0.5.
        twin: a differentiable replacement of an ONNX file or a function. The head of its output is inferred.
        name: name in tables and messages. By default the name of the file, class or function.
        threads: number of threads for ONNX Runtime. PyTorch's threads are not changed.
        output: name of the output to read, for an ONNX file with several.

    Raises:
        DataError: the example is not a float tensor, has no rows, or holds NaN.
        FileError: the file does not exist, is damaged, or is not ONNX.
        ModelError: the model fails on the example, its output is not that of a classifier, or head and threshold do not fit it.
    """
    example = example.detach() if isinstance(example, Tensor) else torch.as_tensor(np.asarray(example))
    _check_rows(example)
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, nn.Module) and isinstance(model, Predictor):
        if head is not None or threshold is not None:
            raise ModelError("head and threshold must be None for a predictor, which has its own. Give them where the predictor is made.")
        return model
    if isinstance(model, nn.Module):
        model = unwrap(model)
        check_inputs(model)
    if output is not None and not isinstance(model, str | os.PathLike | onnx.ModelProto):
        raise ModelError(f"output must be None for a {type(model).__name__}. It names an output of an ONNX file, got {output!r}.")
    called = name or _infer_name(model)
    wanted = as_head(head)
    differentiable: Raw | None = None
    default_run: Raw | None = None
    reason = ""
    run: Raw
    if isinstance(model, nn.Module):
        differentiable = run = _ModuleRun(model)
    elif isinstance(model, str | os.PathLike | onnx.ModelProto):
        file = OnnxFile(model, threads=threads, output=output)
        run = file.run
        wanted = wanted or file.head
        threshold = file.threshold if threshold is None else threshold
        default_run = file.with_default_session().run if file.has_saturation_risk else None
        if twin is None:
            differentiable, reason = _find_onnx_twin(file, example)
    elif callable(model):
        graph = getattr(model, "graph", None)
        if isinstance(graph, torch.fx.GraphModule):
            differentiable = run = _ModuleRun(graph)
        else:
            run = _wrap_function(model, example, called)
            reason = "it is a Python function"
    else:
        raise ModelError(f"The model must be an nn.Module, the path of an ONNX file, or a function of rows, got {type(model).__name__}.")
    if twin is not None:
        differentiable = _ModuleRun(twin) if isinstance(twin, nn.Module) else twin
    probe = example.clone()
    raw = _run_checked(run, probe, called)
    if not torch.equal(probe, example):
        run = _copy_input(run)
        differentiable = run if twin is None and differentiable is not None else differentiable
    if twin is None and differentiable is not None and not _has_gradient(differentiable, example):
        differentiable, reason = None, "its output does not depend on its input by differentiable operations"
    shown = wanted or _infer_head_by_scaling(run, example, called)
    n_classes = 2 if shown in (Head.LOGIT, Head.PROBABILITY) else int(raw.shape[-1])
    compute_threshold_logit(threshold, n_classes)
    twin_head = shown
    if twin is not None and differentiable is not None:
        if wanted is not None and _run_checked(differentiable, example, called).shape == raw.shape:
            twin_head = wanted
        else:
            twin_head = _infer_head_by_scaling(differentiable, example, f"the twin of {called}")
    predictor = ArtefactPredictor(called, n_classes, run, shown, threshold, differentiable, twin_head, reason, default_run)
    logits = predictor.logits(example)
    if isinstance(model, str | os.PathLike | onnx.ModelProto) and (said := describe_other_labels(file, example, logits, threshold)):
        warnings.warn(said, ModelWarning, stacklevel=2)
    if not isinstance(model, nn.Module):
        _warn_about_batch_dependence(predictor, example, logits)
    if twin is not None:
        with torch.no_grad():
            predictor.surrogate(example)
    return predictor


def _warn_about_batch_dependence(predictor: ArtefactPredictor, example: Tensor, logits: Tensor) -> None:
    """Warn where rows get other logits alone than in their batch."""
    places = torch.linspace(0, len(example) - 1, min(ROWS_ALONE, len(example))).round().long()
    if len(example) < 2:
        return
    alone = torch.cat([predictor.logits(example[place : place + 1]) for place in places.tolist()])
    expected = logits[places]
    off = (alone - expected).abs().amax(dim=1) / expected.abs().max().clamp_min(1)
    if int((off > BATCH_TOLERANCE).sum()) <= min(MAX_ROWS_OF_TIES, len(places) - 1):
        return
    differ = int((decide(alone) != decide(expected)).sum())
    # The warning points at the line that called as_predictor.
    warnings.warn(
        f"{predictor.name} answers a person otherwise alone than in a batch: {int((off > BATCH_TOLERANCE).sum())} of {len(places)} rows "
        f"get other scores and {differ} another decision. Figures about its batches do not hold for one person. Quantize it statically, "
        "or export it in evaluation mode.",
        ModelWarning,
        stacklevel=3,
    )


def choose_outputs(output: str | None, *models: Model) -> list[str | None]:
    """Return the output to read of each model, which is ``output`` in ONNX files that have it.

    Args:
        output: name of an output, or None.
        models: the models that are compared.

    Raises:
        FileError: a file cannot be read.
        ModelError: no file has an output of that name.
    """
    if output is None:
        return [None] * len(models)
    files = [model if isinstance(model, str | os.PathLike | onnx.ModelProto) else None for model in models]
    names = [[] if file is None else [value.name for value in read_onnx(file).graph.output] for file in files]
    if not any(output in listed for listed in names):
        listed = ", ".join(dict.fromkeys(name for listed in names for name in listed)) or "none, because no model is an ONNX file"
        raise ModelError(f"output must be one of the models' outputs ({listed}), got {output!r}.")
    return [output if output in listed else None for listed in names]


def find_recorded_threshold(*models: Model) -> float | None:
    """Return the decision threshold that ONNX files record in their metadata, for models that are compared with one another.

    A ``cfptq.errors.ModelWarning`` says where only some of the models record one.

    Args:
        models: the models that are compared.

    Raises:
        FileError: a file cannot be read.
        ModelError: two files record different thresholds.
    """
    recorded: list[tuple[str, float]] = []
    for model in models:
        if isinstance(model, str | os.PathLike | onnx.ModelProto):
            content = read_onnx(model)
            if any(entry.key == THRESHOLD_KEY for entry in content.metadata_props):
                recorded.append((name_source(model), read_decision_rule(content)[1] or 0.5))
    if len({value for _, value in recorded}) > 1:
        listed = " and ".join(f"{value:g} in {name}" for name, value in recorded)
        raise ModelError(f"The files must decide at one threshold, got {listed}. Give the right one with threshold=.")
    where, threshold = next(iter(recorded), ("", 0.5))
    if threshold == 0.5:
        return None
    if len(recorded) < len(models):
        warnings.warn(
            f"Every model is read to decide at {threshold:g}, the threshold that {where} records. Give threshold= if it is another.",
            ModelWarning,
            stacklevel=3,
        )
    return threshold


def describe_reading(predictor: Predictor) -> str:
    """Return how a model's output is read, in words, or "" for a predictor of the user's own."""
    return str(DecisionRule(predictor.head, predictor.threshold)) if isinstance(predictor, ArtefactPredictor) else ""


def count_saturated_decisions(predictor: Predictor, rows: Tensor, decided: Tensor) -> int:
    """Count the rows whose decision changes in ONNX Runtime's default session, where int8 products can saturate.

    Args:
        predictor: the artefact. Only an ONNX file on a processor without VNNI can have such rows.
        rows: (N, ...) float32.
        decided: (N,) decisions without saturation.
    """
    logits = predictor.logits_in_default_session(rows) if isinstance(predictor, ArtefactPredictor) else None
    return 0 if logits is None else int((decide(logits) != decided).sum())


def _check_rows(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"Rows must be a float32 tensor of columns (N, d), got {kind}. Encode raw features first.")
    if x.dim() < 2 or x.numel() == 0:
        raise DataError(f"Rows must have shape (N, d) or (N, ...) with N at least 1, got {tuple(x.shape)}.")
    if bool(torch.isnan(x.detach().sum())):
        rows = torch.isnan(x.detach()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if rows:
            raise DataError(f"Rows must not hold NaN, but rows {name_rows(rows)} do. Fill in missing values first.")


def _infer_name(model: Any) -> str:
    if isinstance(model, str | os.PathLike):
        return os.path.basename(os.fspath(model))
    if isinstance(model, onnx.ModelProto):
        return model.graph.name or "onnx"
    if isinstance(model, nn.Module):
        return type(model).__name__
    return str(getattr(model, "__name__", type(model).__name__))


def _describe_failure(name: str, x: Tensor, error: Exception) -> ModelError:
    said = f"{name} fails on rows of shape {tuple(x.shape)}: {summarize_error(error)}"
    return ModelError(f"{said}. Check that it was trained on such rows.")


def _run_checked(run: Raw, x: Tensor, name: str) -> Tensor:
    """Run a model without gradient and turn its exceptions into a ModelError."""
    try:
        with torch.no_grad():
            output = run(x)
    except CfptqError:
        raise
    except Exception as error:
        raise _describe_failure(name, x, error) from error
    if not isinstance(output, Tensor):
        raise ModelError(f"{name} must return one tensor of class scores, got {type(output).__name__}. Wrap it accordingly.")
    return output


def _has_gradient(run: Raw, example: Tensor) -> bool:
    """Check that the output of a model can be differentiated with respect to its rows."""
    with torch.inference_mode(False), torch.enable_grad():
        rows = example[:GRADIENT_ROWS].clone().requires_grad_(True)
        try:
            output = run(rows * 1.0)  # The model may write into its input, which a leaf of autograd refuses.
            torch.autograd.grad(output.sum(), rows)
        except RuntimeError:
            return False
    return True


def _copy_input(run: Raw) -> Raw:
    """Give a model that writes into its input a copy of the caller's rows."""
    return lambda x: run(x.clone())


def _infer_head_by_scaling(run: Raw, example: Tensor, name: str) -> Head:
    raw = _run_checked(run, example, name)
    if bool(torch.isnan(raw).any()):
        rows = torch.isnan(raw.flatten(1) if raw.dim() > 1 else raw.unsqueeze(1)).any(dim=1).nonzero().flatten().tolist()
        raise ModelError(f"{name} returns NaN for rows {name_rows(rows)}. Check the model's weights and the scale of the rows.")
    head = infer_head(raw)
    if head in (Head.PROBABILITY, Head.PROBABILITIES):
        # Small logits look like probabilities. Only probabilities stay in [0, 1] for rows of any scale.
        for moved in _list_far_rows(example):
            try:
                far = _run_checked(run, moved, name)
                if bool(torch.isfinite(far).all()) and infer_head(far) is not head:
                    return infer_head(far)
            except CfptqError:
                continue
    if head is Head.LOGITS and _stays_between_0_and_1(run, example, raw, name):
        raise ModelError(
            f"{name} must choose one class among several, got {raw.shape[1]} values between 0 and 1 that do not sum to 1. "
            'They look like separate labels. Wrap the model, or give head="logits" if the largest value is the decision.'
        )
    return head


def _list_far_rows(example: Tensor) -> Iterator[Tensor]:
    """Yield the rows of the example scaled and moved. Rows of zeros stay where they are under a scale."""
    for scale in EXAMPLE_SCALES:
        yield example * scale
        yield example + scale


def _stays_between_0_and_1(run: Raw, example: Tensor, raw: Tensor, name: str) -> bool:
    """Return whether all outputs lie in [0, 1] for rows of any scale, and are not the same for all."""
    if not bool(((raw >= 0) & (raw <= 1)).all()):
        return False
    varies = False
    for rows in _list_far_rows(example):
        try:
            far = _run_checked(run, rows, name)
        except CfptqError:
            continue
        if not bool(((far >= 0) & (far <= 1)).all()):
            return False
        varies |= not torch.equal(far, raw)
    return varies


class _ModuleRun:
    """A module as a function of rows, run in eval mode, on its own device and in its own dtype."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # Solvers call this thousands of times. Walking the module tree each time would cost as much as running a small model.
        self._modules = tuple(module.modules())
        tensors = itertools.chain(module.parameters(), module.buffers())
        self._first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)

    def __call__(self, x: Tensor) -> Tensor:
        first = self._first
        if first is not None and (first.device != x.device or first.dtype != x.dtype):
            x = x.to(device=first.device, dtype=first.dtype)
        training = [module for module in self._modules if module.training]
        if not training:
            return self._run(x)
        with _eval_mode(training):
            return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        output = self.module(x)
        if isinstance(output, Tensor):
            return output.to(device="cpu", dtype=torch.float32)
        returned = f"{type(self.module).__name__} must return one tensor of class scores, got {type(output).__name__}"
        raise ModelError(f"{returned}. Wrap it in a module that does.")


@contextmanager
def _eval_mode(training: list[nn.Module]) -> Iterator[None]:
    # Modules that come out of torch.export refuse .eval(), hence the flag is set directly.
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _wrap_function(function: Callable[..., Any], example: Tensor, name: str) -> Raw:
    """Wrap ``function`` as a function of tensors, called with a NumPy array or, if it fails on that, with a tensor."""

    def with_array(x: Tensor) -> Tensor:
        return _as_tensor(function(x.detach().to(torch.float32).numpy().copy()))

    def with_tensor(x: Tensor) -> Tensor:
        return _as_tensor(function(x.detach().to(torch.float32).clone()))

    def _as_tensor(answer: Any) -> Tensor:
        if isinstance(answer, Tensor):
            return answer.detach().to(device="cpu", dtype=torch.float32)
        return torch.from_numpy(np.ascontiguousarray(answer, dtype=np.float32))

    try:
        with torch.no_grad():
            with_array(example)
        return with_array
    except Exception as refused:
        try:
            with torch.no_grad():
                with_tensor(example)
            return with_tensor
        except Exception as error:
            raise ModelError(
                f"{name} must take float32 rows and return an array of class scores, but fails on rows of shape {tuple(example.shape)}. "
                f"As an array: {refused}. As a tensor: {error}."
            ) from error


def _find_onnx_twin(file: OnnxFile, example: Tensor) -> tuple[Raw | None, str]:
    """Build the differentiable twin of an ONNX file and compare it with the file on ``example``.

    Returns:
        The twin and "", or None and the reason why there is none.
    """
    try:
        module = OnnxModule(file.model, output=file.output)
    except CfptqError as error:
        return None, str(error)
    said = _run_checked(file.run, example, file.where).reshape(len(example), -1)
    reason = ""
    # The Reshapes of a file exported for a fixed number of rows may hold that number. The twin then runs in parts, too.
    for candidate in (_ModuleRun(module),) if file.fixed_rows is None else (_ModuleRun(module), _run_in_parts(module, file.fixed_rows)):
        try:
            off = (_run_checked(candidate, example, "twin").reshape(len(example), -1) - said).abs().amax(dim=1)
        except CfptqError as error:
            reason = f"its differentiable twin fails: {error}"
            continue
        except RuntimeError as error:
            reason = f"its differentiable twin fails: {summarize_error(error)}"
            continue
        if float(off.median()) <= RELATIVE_TWIN_TOLERANCE * (1 + float(said.abs().max())):
            return candidate, ""
        reason = f"its differentiable twin is off by up to {float(off.max()):.3g}"
    return None, reason


def _run_in_parts(module: nn.Module, rows: int) -> Raw:
    def run(x: Tensor) -> Tensor:
        padding = x[-1:].expand(-len(x) % rows, *x.shape[1:])
        parts = torch.split(torch.cat((x, padding)), rows)
        return torch.cat([module(part) for part in parts])[: len(x)]

    return run
