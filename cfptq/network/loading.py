"""A user's own PyTorch model, named on the command line: a function to import and a file with its state."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cfptq.errors import FileError, ModelError
from cfptq.network.onnx.file import PICKLED, summarize_error
from cfptq.network.state import preserved_state


def load_factory(spec: str, state: str | os.PathLike[str] | None = None) -> nn.Module:
    """The model that ``package.module:function`` builds, with the weights of a ``.safetensors`` file, in eval mode.

    The module is imported as Python would from the current folder. The function takes no arguments; a module class serves
    too. Tensors that a model shares may be stored once. Random numbers that the function draws leave the global generators
    as they were.

    Args:
        spec: "package.module:function".
        state: a ``.safetensors`` file of the model's ``state_dict()``; ``None`` keeps the weights that the function gives.

    Raises:
        ModelError: the spec cannot be imported, fails, or gives no ``nn.Module``; the state's names or shapes do not fit it.
        FileError: the state is missing, cut off, or in a format that unpickles.
    """
    tensors = None if state is None else _read_state(Path(state))
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise ModelError(f"{spec!r} names no factory; write package.module:function")
    with preserved_state(), _current_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise ModelError(
                f"importing {module_name!r} fails: {summarize_error(error)}; run from the folder it is in, or install it"
            ) from error
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise ModelError(f"{module_name!r} has no {attribute!r}; name a function of it that returns the model")
            found = getattr(found, part)
        try:
            model = found if isinstance(found, nn.Module) else found()
        except Exception as error:
            raise ModelError(f"{spec} fails: {summarize_error(error)}; it must build the model without arguments") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} gives a {type(model).__name__}; it must return a torch.nn.Module")
    if tensors is not None:
        _load_state(model, tensors, spec, str(state))
    return model.eval()


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() in PICKLED or path.suffix.lower() != ".safetensors":
        raise FileError(
            f"{path} is no .safetensors file; formats that unpickle are not accepted. "
            "Write the state with safetensors.torch.save_model(model, 'state.safetensors')"
        )
    if not path.is_file():
        raise FileError(f"{path} is not there; give the path of the model's .safetensors state")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is no safetensors file, or it is cut off: {summarize_error(error)}; save it again") from error


def _load_state(model: nn.Module, tensors: dict[str, Tensor], spec: str, path: str) -> None:
    own = model.state_dict()
    unknown = [name for name in tensors if name not in own]
    stored = {_place(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if name not in tensors and _place(tensor) not in stored]
    if unknown or missing:
        listed = "; ".join(
            f"{word} {', '.join(names[:5])}" for word, names in (("it lacks", missing), ("it has unknown", unknown)) if names
        )
        raise ModelError(f"{path} does not fit {spec}: {listed}; give the state of this very model")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"{path} does not fit {spec}: {name} is {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in the model; "
                "build the model with the sizes it was trained with"
            )
    model.load_state_dict(tensors, strict=False)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: equal for the names of one shared tensor. An empty tensor lies nowhere and is shared with none."""
    return (tensor.data_ptr() or id(tensor), tensor.storage_offset(), tuple(tensor.shape))


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
