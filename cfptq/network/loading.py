"""Loading of a user's PyTorch model from an importable function and a file with its state."""

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
    """Build the model of ``package.module:function``, load its state, and set eval mode.

    The module is imported as from the current folder. The function takes no arguments. A module class is allowed too. Tensors that
    a model shares may be stored once. The global random state is not changed.

    Args:
        spec: "package.module:function".
        state: a ``.safetensors`` file of the model's ``state_dict()``. By default the weights that the function sets are kept.

    Raises:
        ModelError: the spec cannot be imported, fails, or does not return an ``nn.Module``, or the state does not fit the model.
        FileError: the state is missing, cut off, or in a format that unpickles.
    """
    tensors = None if state is None else _read_state(Path(state))
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise ModelError(f"The model must be given as package.module:function, got {spec!r}.")
    with preserved_state(), _current_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except Exception as error:
            raise ModelError(f"Importing {module_name!r} fails: {summarize_error(error)}. Run from its folder or install it.") from error
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise ModelError(f"{module_name!r} has no {attribute!r}. Name a function of it that returns the model.")
            found = getattr(found, part)
        try:
            model = found if isinstance(found, nn.Module) else found()
        except Exception as error:
            raise ModelError(f"{spec} fails: {summarize_error(error)}. It must build the model without arguments.") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} must return a torch.nn.Module, got {type(model).__name__}.")
    if tensors is not None:
        _load_state(model, tensors, spec, str(state))
    return model.eval()


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() in PICKLED or path.suffix.lower() != ".safetensors":
        raise FileError(
            f"The state must be a .safetensors file, got {path}. Formats that unpickle are not accepted. "
            "Write it with safetensors.torch.save_model(model, 'state.safetensors')."
        )
    if not path.is_file():
        raise FileError(f"{path} does not exist. Give the path of the model's .safetensors state.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is not a valid safetensors file: {summarize_error(error)}. Save it again.") from error


def _load_state(model: nn.Module, tensors: dict[str, Tensor], spec: str, path: str) -> None:
    own = model.state_dict()
    unknown = [name for name in tensors if name not in own]
    stored = {_identify_storage(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if name not in tensors and _identify_storage(tensor) not in stored]
    if unknown or missing:
        listed = " and ".join(
            f"{word} {', '.join(names[:5])}" for word, names in (("it lacks", missing), ("it has unknown", unknown)) if names
        )
        raise ModelError(f"{path} does not fit {spec}: {listed}. Give the state of this model.")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"{path} does not fit {spec}: {name} has shape {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in the "
                "model. Build the model with the sizes that it was trained with."
            )
    model.load_state_dict(tensors, strict=False)


def _identify_storage(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for all names of one shared tensor, and unique for an empty tensor."""
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
