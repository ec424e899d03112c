"""The files that a training run keeps, a checkpoint to resume from and a log."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfptq.io.atomic import write_text
from cfptq.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run's files, each None where the file is not wanted.

    Attributes:
        checkpoint: one safetensors file, replaced after every epoch. A run that finds it resumes from it.
        log: a CSV file with one line per epoch.
    """

    checkpoint: str | os.PathLike[str] | None = None
    log: str | os.PathLike[str] | None = None

    def load_checkpoint(self, run: str) -> Checkpoint | None:
        """Load the checkpoint of the run with digest ``run``, or return None where there is none yet.

        Raises:
            FileError: the file cannot be read, is no checkpoint, or belongs to another run.
        """
        return None if self.checkpoint is None else Checkpoint.load(self.checkpoint, run)

    def save_checkpoint(self, checkpoint: Checkpoint, run: str) -> None:
        """Write the checkpoint of the run with digest ``run``, where one is wanted."""
        if self.checkpoint is not None:
            checkpoint.save(self.checkpoint, run)

    def write_log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the epochs' records as CSV, where a log is wanted."""
        if self.log is None:
            return
        names = list(dict.fromkeys(name for record in records for name in record))
        lines = [",".join(names), *(",".join(_format_cell(record.get(name)) for name in names) for record in records)]
        write_text(self.log, "\n".join(lines) + "\n")


def _format_cell(value: Any) -> str:
    """Format one value of the log, lists separated by spaces and None as an empty cell."""
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value}"
