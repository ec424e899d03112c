"""Tensors and submodules of a graph module, by dotted name."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from cfptq.errors import ModelError


def get_attribute(root: nn.Module, name: str) -> object:
    """Return the value at the dotted ``name`` under ``root``.

    Raises:
        ModelError: there is no such attribute.
    """
    value: object = root
    for part in name.split("."):
        if not hasattr(value, part):
            raise ModelError(f"The graph module has no attribute {name!r}.")
        value = getattr(value, part)
    return value


def get_tensor(root: nn.Module, name: str) -> Tensor:
    """Return the tensor at the dotted ``name`` under ``root``.

    Raises:
        ModelError: there is no such attribute, or it is not a tensor.
    """
    value = get_attribute(root, name)
    if not isinstance(value, Tensor):
        raise ModelError(f"Attribute {name!r} of the graph module must be a tensor, got {type(value).__name__}.")
    return value


def set_tensor(root: nn.Module, name: str, value: Tensor) -> None:
    """Set the tensor at the dotted ``name`` under ``root``, adding submodules where they are missing.

    It becomes a frozen parameter, or a buffer if its dtype takes no gradient.
    """
    *path, last = name.split(".")
    owner = root
    for part in path:
        if owner._modules.get(part) is None:
            owner._parameters.pop(part, None)
            owner._buffers.pop(part, None)
            owner._modules[part] = nn.Module()
        owner = cast(nn.Module, owner._modules[part])
    owner._parameters.pop(last, None)
    owner._buffers.pop(last, None)
    frozen = value.detach().contiguous()
    if frozen.is_floating_point():
        owner.register_parameter(last, nn.Parameter(frozen, requires_grad=False))
    else:
        owner.register_buffer(last, frozen)
