"""One protocol for whatever classifies rows: a PyTorch module, an ONNX file, a Python function.

``logits`` is what the artefact itself says (an ONNX file runs in ONNX Runtime), ``surrogate`` is differentiable. Both give
class logits (see :mod:`cfptq.network.head`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cfptq.errors import CfptqError, DataError, ModelError, name_rows
from cfptq.network.head import Head, as_head, check_threshold, class_logits, decisions, infer_head
from cfptq.network.onnx.file import OnnxFile, summarize_error
from cfptq.network.onnx.module import OnnxModule

#: Rows that an artefact is given at a time when nobody asks for gradients: bounds memory on long tables.
CHUNK_ROWS = 16384
#: Class logits beyond this size (log 0 of a callable, say) are cut to it, so that margins stay finite.
LARGEST_LOGIT = 1e30
#: Factors by which the example is stretched to see whether outputs in [0, 1] are probabilities everywhere.
STRETCHES = (-32.0, 8.0, -1e4, 1e4)
#: A file's twin must answer the example like the file: median error of the rows, relative to the largest output.
TWIN_TOLERANCE = 0.02

Raw = Callable[[Tensor], Tensor]


@runtime_checkable
class Predictor(Protocol):
    """A classifier, whatever it is made of."""

    @property
    def name(self) -> str:
        """A word for tables and messages."""

    @property
    def n_classes(self) -> int:
        """Number of classes C, at least 2."""

    @property
    def differentiable(self) -> bool:
        """Whether :meth:`surrogate` works."""

    def logits(self, x: Tensor) -> Tensor:
        """Class logits ``(N, C)`` of the artefact itself for rows ``x`` (float32, on the CPU), without gradient."""

    def surrogate(self, x: Tensor) -> Tensor:
        """Class logits ``(N, C)``, differentiable with respect to ``x``."""


Model = nn.Module | str | os.PathLike[str] | onnx.ModelProto | Callable[..., Any] | Predictor


@dataclass(frozen=True, eq=False)
class ArtefactPredictor:
    """The one implementation of :class:`Predictor`: a raw function for the artefact and, where there is one, for its twin.

    Attributes:
        name, n_classes: see :class:`Predictor`.
        run: rows to raw output, the artefact itself; called without gradient.
        twin: rows to raw output, differentiable; ``None`` where there is none.
        head, twin_head: what ``run`` and ``twin`` return.
        threshold: probability of class 1 above which class 1 is decided.
        reason: why ``twin`` is missing; empty where it is not.
        default_run: an ONNX file in ONNX Runtime's default session, where its int8 products can saturate on this processor and ``run``
            avoids that; None everywhere else.
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
    def differentiable(self) -> bool:
        """Whether :meth:`surrogate` works."""
        return self.twin is not None

    def logits(self, x: Tensor) -> Tensor:
        """Class logits ``(N, C)`` of the artefact, no gradient.

        Raises:
            DataError: ``x`` is no float tensor, has no rows, or holds NaN.
            ModelError: the model fails on ``x``, or answers NaN or another shape than on the example.
        """
        _check_rows(x)
        with torch.no_grad():
            if len(x) <= CHUNK_ROWS:
                return self._finish(self.run(x.detach()), self.head, x)
            return torch.cat([self._finish(self.run(part), self.head, part) for part in torch.split(x.detach(), CHUNK_ROWS)])

    def default_logits(self, x: Tensor) -> Tensor | None:
        """Class logits ``(N, C)`` of the artefact as a default session computes them; None where that is what :meth:`logits` gives."""
        return None if self.default_run is None else replace(self, run=self.default_run).logits(x)

    def surrogate(self, x: Tensor) -> Tensor:
        """Class logits ``(N, C)``, differentiable with respect to ``x``.

        Raises:
            ModelError: there is no differentiable twin (``reason`` says why), or as :meth:`logits`.
        """
        if self.twin is None:
            raise ModelError(f"{self.name} has no gradient: {self.reason}; give a differentiable twin=, or use a method that needs none")
        return self._finish(self.twin(x), self.twin_head or self.head, x)

    def _finish(self, output: Tensor, head: Head, x: Tensor) -> Tensor:
        logits = class_logits(output, head, self.threshold)
        if logits.shape != (len(x), self.n_classes):
            raise ModelError(
                f"{self.name} answers {len(x)} rows with class logits {tuple(logits.shape)}, not ({len(x)}, {self.n_classes}); "
                "each row must give one answer, independent of how many rows come at once"
            )
        if not bool(torch.isfinite(logits.detach().sum())):
            rows = torch.isnan(logits.detach()).any(dim=1).nonzero().flatten().tolist()
            if rows:
                raise ModelError(f"{self.name} answers NaN for rows {name_rows(rows)}; check the model's weights and the rows' scale")
            logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
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
    """A :class:`Predictor` of a PyTorch module, an ONNX file or model, or a Python function.

    Args:
        model: ``nn.Module`` (run in eval mode, left as found), path of an ONNX file or an ``onnx.ModelProto`` (run by ONNX
            Runtime on the CPU), a function of float32 rows (NumPy array or tensor) that returns an array, or a predictor,
            which is returned as it is.
        example: some rows the model is for, ``(N, ...)`` float32, the more the better; they show the output's shape and head.
        head: what the raw output is; ``None`` infers it (see :func:`~cfptq.network.head.infer_head`), and rows far from the
            example are tried before outputs in [0, 1] are believed to be probabilities.
        threshold: probability of class 1 above which class 1 is decided; two classes only; ``None`` means 0.5.
        twin: a differentiable stand-in for an ONNX file or a function; its raw output's head is inferred.
        name: a word for tables and messages; by default the file's name, the class's name or the function's name.
        threads: threads ONNX Runtime may use; PyTorch's own are left alone.
        output: which output of an ONNX file to read, where it has several.

    Raises:
        DataError: the example is no float tensor, has no rows or holds NaN.
        FileError: no such file, a corrupt one, one that is not ONNX.
        ModelError: the model fails on the example, its output is no classifier's, or head and threshold do not fit it.
    """
    example = example.detach() if isinstance(example, Tensor) else torch.as_tensor(np.asarray(example))
    _check_rows(example)
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, nn.Module) and isinstance(model, Predictor):
        if head is not None or threshold is not None:
            raise ModelError("a predictor carries its own head and threshold: give head= and threshold= where the predictor is made")
        return model
    called = name or _name_of(model)
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
        default_run = file.with_default_session().run if file.has_saturation_risk else None
        if twin is None:
            differentiable, reason = _onnx_twin(file, example)
    elif callable(model):
        graph = getattr(model, "graph", None)
        if isinstance(graph, torch.fx.GraphModule):
            differentiable = run = _ModuleRun(graph)
        else:
            run = _callable_run(model, example, called)
            reason = "it is a Python function"
    else:
        raise ModelError(f"a {type(model).__name__} is no model; give an nn.Module, the path of an ONNX file, or a function of rows")
    if twin is not None:
        differentiable = _ModuleRun(twin) if isinstance(twin, nn.Module) else twin
    probe = example.clone()
    raw = _attempt(run, probe, called)
    if not torch.equal(probe, example):
        run = _on_copies(run)
        differentiable = run if twin is None and differentiable is not None else differentiable
    shown = wanted or _seen_head(run, example, called)
    n_classes = 2 if shown in (Head.LOGIT, Head.PROBABILITY) else int(raw.shape[-1])
    check_threshold(threshold, n_classes)
    twin_head = shown
    if twin is not None and differentiable is not None:
        twin_head = _seen_head(differentiable, example, f"the twin of {called}")
        if wanted is not None and _attempt(differentiable, example, called).shape == raw.shape:
            twin_head = wanted
    predictor = ArtefactPredictor(called, n_classes, run, shown, threshold, differentiable, twin_head, reason, default_run)
    predictor.logits(example)
    if twin is not None:
        with torch.no_grad():
            predictor.surrogate(example)
    return predictor


def decided_otherwise_by_default(predictor: Predictor, rows: Tensor, decided: Tensor) -> int:
    """Count the rows that a default session of ONNX Runtime decides otherwise on this processor, because int8 products saturate there.

    Args:
        rows: (N, ...) float32.
        decided: (N,) decisions without saturation.
    """
    logits = predictor.default_logits(rows) if isinstance(predictor, ArtefactPredictor) else None
    return 0 if logits is None else int((decisions(logits) != decided).sum())


def _check_rows(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"rows are {kind}; give a float32 tensor of columns (N, d): encode raw features first")
    if x.dim() < 2 or x.numel() == 0:
        raise DataError(f"rows have shape {tuple(x.shape)}; give (N, d) or (N, ...) with at least one row")
    if bool(torch.isnan(x.detach().sum())):
        rows = torch.isnan(x.detach()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if rows:
            raise DataError(f"rows {name_rows(rows)} hold NaN; fill missing values before the model sees them")


def _name_of(model: Any) -> str:
    if isinstance(model, str | os.PathLike):
        return os.path.basename(os.fspath(model))
    if isinstance(model, onnx.ModelProto):
        return model.graph.name or "onnx"
    if isinstance(model, nn.Module):
        return type(model).__name__
    return str(getattr(model, "__name__", type(model).__name__))


def _attempt(run: Raw, x: Tensor, name: str) -> Tensor:
    """``run(x)`` without gradient; whatever goes wrong inside the user's model becomes a ModelError."""
    try:
        with torch.no_grad():
            output = run(x)
    except CfptqError:
        raise
    except Exception as error:
        said = f"{name} fails on rows of shape {tuple(x.shape)}: {summarize_error(error)}"
        raise ModelError(f"{said}; check that the rows are what it was trained on") from error
    if not isinstance(output, Tensor):
        raise ModelError(f"{name} returns a {type(output).__name__}; wrap it so that it returns one tensor of class scores")
    return output


def _on_copies(run: Raw) -> Raw:
    """A model that writes into its input must not write into the caller's rows."""
    return lambda x: run(x.clone())


def _seen_head(run: Raw, example: Tensor, name: str) -> Head:
    raw = _attempt(run, example, name)
    if bool(torch.isnan(raw).any()):
        rows = torch.isnan(raw.flatten(1) if raw.dim() > 1 else raw.unsqueeze(1)).any(dim=1).nonzero().flatten().tolist()
        raise ModelError(f"{name} answers NaN for rows {name_rows(rows)}; check the model's weights and the rows' scale")
    head = infer_head(raw)
    if head in (Head.PROBABILITY, Head.PROBABILITIES):
        # Small logits look like probabilities; only probabilities stay so however far the rows are stretched.
        for stretch in STRETCHES:
            try:
                far = _attempt(run, example * stretch, name)
                if bool(torch.isfinite(far).all()) and infer_head(far) is not head:
                    return infer_head(far)
            except CfptqError:
                continue
    return head


class _ModuleRun:
    """A module as a function of rows: in eval mode whatever its flags say, on its own device and in its own dtype."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # Solvers call this thousands of times: walking the module tree each time would cost as much as a small model.
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
        with _in_eval(training):
            return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        output = self.module(x)
        if isinstance(output, Tensor):
            return output.to(device="cpu", dtype=torch.float32)
        returned = f"{type(self.module).__name__} returns a {type(output).__name__}"
        raise ModelError(f"{returned}; wrap it in a module whose forward returns one tensor of class scores")


@contextmanager
def _in_eval(training: list[nn.Module]) -> Iterator[None]:
    # The flag is written directly: modules that come out of torch.export refuse .eval().
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _callable_run(function: Callable[..., Any], example: Tensor, name: str) -> Raw:
    """``function`` as a function of tensors, called with a NumPy array or, where it refuses that, with a tensor."""

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
                f"{name} fails on rows of shape {tuple(example.shape)}, given as an array ({refused}) and as a tensor ({error}); "
                "it must take float32 rows and return an array of class scores"
            ) from error


def _onnx_twin(file: OnnxFile, example: Tensor) -> tuple[Raw | None, str]:
    """The differentiable twin of an ONNX file, checked against the file on ``example``; or ``None`` and the reason."""
    try:
        module = OnnxModule(file.model, output=file.output)
    except CfptqError as error:
        return None, str(error)
    said = _attempt(file.run, example, file.where).reshape(len(example), -1)
    reason = ""
    # A file exported for a fixed number of rows may have it written into its Reshapes; then the twin runs in parts, too.
    for candidate in (_ModuleRun(module),) if file.fixed_rows is None else (_ModuleRun(module), _in_parts(module, file.fixed_rows)):
        try:
            off = (_attempt(candidate, example, "twin").reshape(len(example), -1) - said).abs().amax(dim=1)
        except CfptqError as error:
            reason = f"its differentiable twin fails: {error}"
            continue
        except RuntimeError as error:
            reason = f"its differentiable twin fails: {summarize_error(error)}"
            continue
        if float(off.median()) <= TWIN_TOLERANCE * (1 + float(said.abs().max())):
            return candidate, ""
        reason = f"its differentiable twin is off by up to {float(off.max()):.3g}"
    return None, reason


def _in_parts(module: nn.Module, rows: int) -> Raw:
    def run(x: Tensor) -> Tensor:
        padding = x[-1:].expand(-len(x) % rows, *x.shape[1:])
        parts = torch.split(torch.cat((x, padding)), rows)
        return torch.cat([module(part) for part in parts])[: len(x)]

    return run
