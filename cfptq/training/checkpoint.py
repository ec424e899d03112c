"""Checkpoints: one safetensors file an epoch, written aside, from which training goes on as if nothing had happened."""

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
    """Everything that the next epoch depends on.

    Attributes:
        tensors: parameters, their best values so far, and the optimizer's moments, by name.
        progress: the rest, as JSON holds it: epoch, best epoch and loss, widths, log.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]

    def save(self, path: str | os.PathLike[str], run: str) -> None:
        """Write the checkpoint of the run called ``run`` (a digest), whole or not at all."""
        metadata = {"format": _FORMAT, "run": run, "progress": json.dumps(self.progress)}
        with atomic_write(path) as aside:
            save_file({name: value.detach().contiguous().clone() for name, value in self.tensors.items()}, aside, metadata=metadata)

    @staticmethod
    def load(path: str | os.PathLike[str], run: str) -> Checkpoint | None:
        """What :meth:`save` wrote, or None where there is no file yet.

        Raises:
            FileError: the file is cut off, no checkpoint, or one of another run.
        """
        if not Path(path).exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata.get("format") != _FORMAT:
                raise FileError(f"{path} is no training checkpoint ({_FORMAT}); give another path, or delete the file")
            progress = json.loads(metadata["progress"])
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise FileError(f"{path} cannot be read as a training checkpoint ({error}); delete it to start anew") from error
        if metadata.get("run") != run:
            raise FileError(
                f"{path} is the checkpoint of another run (other data, model, settings or seed); give another path, or delete it"
            )
        return Checkpoint(tensors, progress)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments, by parameter number and name."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
