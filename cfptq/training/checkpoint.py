"""Training checkpoints in the safetensors format, one file that is replaced atomically."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfptq.errors import FileError
from cfptq.io.atomic import atomic_write

_FORMAT = "cfptq.training/1"


@dataclass(frozen=True)
class Checkpoint:
    """The state that the next epoch depends on.

    Attributes:
        tensors: parameters, their best values so far, and the optimizer's moments, by name.
        progress: the rest as JSON values, such as the next epoch, the best epoch, the widths and the log.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]

    def save(self, path: str | os.PathLike[str], run: str) -> None:
        """Write the checkpoint atomically.

        Args:
            path: the file to write or replace.
            run: digest of the run, checked by ``load``.
        """
        metadata = {"format": _FORMAT, "run": run, "progress": json.dumps(self.progress)}
        with atomic_write(path) as aside:
            save_file({name: value.detach().contiguous().clone() for name, value in self.tensors.items()}, aside, metadata=metadata)

    @staticmethod
    def load(path: str | os.PathLike[str], run: str) -> Checkpoint | None:
        """Load a checkpoint, or return None where there is no file.

        Args:
            path: the file to read.
            run: digest of the run that resumes.

        Raises:
            FileError: the file cannot be read, is no checkpoint, or belongs to another run.
        """
        if not Path(path).exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata.get("format") != _FORMAT:
                raise FileError(f"{path} must be a training checkpoint ({_FORMAT}). Give another path, or delete the file.")
            progress = json.loads(metadata["progress"])
        except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
            raise FileError(f"Cannot read {path} as a training checkpoint ({error}). Delete it to start again.") from error
        if metadata.get("run") != run:
            raise FileError(
                f"{path} is the checkpoint of another run. Its data, model, settings or seed differ. Give another path, or delete it."
            )
        return Checkpoint(tensors, progress)


def get_optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's moments by parameter number and name."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the moments that ``get_optimizer_tensors`` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
