"""A context that runs models and restores them and all global state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cfptq.errors import ModelError


def check_initialized(model: nn.Module) -> None:
    """Check that all parameters and buffers have values.

    Raises:
        ModelError: a lazy module has no values yet.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"{name!r} has no values yet. Run the lazy model on a few rows or load its state first.")


@contextmanager
def preserved_state(*models: nn.Module, threads: int | None = None) -> Iterator[None]:
    """Run a block with ``models`` in eval mode and restore models and global state on exit, also after an exception.

    The models' state is the training flag of each submodule, ``requires_grad`` and ``.grad`` of each parameter, and the buffers
    (the same tensor objects with the same values). The global state is PyTorch's thread count and the random generators of PyTorch
    (CPU and CUDA), NumPy and Python. Inside the block ``.grad`` is ``None``, so that nothing is added to the user's gradients.
    Parameter values are not copied. A block that writes them must work on a copy.

    Args:
        models: modules that the block runs. Without any, only the global state is restored.
        threads: PyTorch's intra-op thread count inside the block. By default it is not changed.

    Raises:
        ModelError: a lazy module has no values yet.
    """
    for model in models:
        check_initialized(model)
    modules = list({id(module): module for model in models for module in model.modules()}.values())
    parameters = list({id(p): p for model in models for p in model.parameters()}.values())
    modes = [module.training for module in modules]
    frozen = [(p.requires_grad, p.grad) for p in parameters]
    buffers = [{name: (b, None if b is None else b.detach().clone()) for name, b in _list_buffers(module)} for module in modules]
    thread_count = torch.get_num_threads()
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        # Modules that come out of torch.export refuse .eval(), hence the flag is set directly.
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.grad = None
        if threads is not None and threads != thread_count:
            torch.set_num_threads(threads)
        # Recourse and scores need gradients, even if the caller is in inference mode.
        with torch.inference_mode(False):
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, (requires_grad, grad) in zip(parameters, frozen, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, saved in zip(modules, buffers, strict=True):
            is_scripted = isinstance(module, torch.jit.ScriptModule)  # It can neither gain nor lose a buffer.
            for name in [] if is_scripted else [name for name in module._buffers if name not in saved]:
                del module._buffers[name]
            for name, (buffer, value) in saved.items():
                if not is_scripted:
                    module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    _restore_buffer(buffer, value)
        if torch.get_num_threads() != thread_count:
            torch.set_num_threads(thread_count)
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def _list_buffers(module: nn.Module) -> list[tuple[str, Tensor | None]]:
    """Return the module's own buffers by name, those that are None too unless it is a ScriptModule."""
    if isinstance(module, torch.jit.ScriptModule):
        return list(module.named_buffers(recurse=False))
    return list(module._buffers.items())


def _restore_buffer(buffer: Tensor, value: Tensor) -> None:
    if buffer.shape == value.shape and torch.equal(buffer, value):
        return
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        if buffer.shape != value.shape:
            buffer.resize_(value.shape)
        buffer.copy_(value)
