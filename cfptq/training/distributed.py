"""Data-parallel training in several processes, with averaged gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Workers:
    """The place of this process among those that train together.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def detect() -> Workers:
        """Return the workers of the initialized ``torch.distributed`` process group, or this process alone without one."""
        if distributed.is_available() and distributed.is_initialized():
            return Workers(distributed.get_rank(), distributed.get_world_size())
        return Workers()

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [torch.zeros_like(it) if it.grad is None else it.grad for it in trained]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(together)
        together /= self.size
        for parameter, mean in zip(trained, torch.split(together, [it.numel() for it in trained]), strict=True):
            parameter.grad = mean.reshape(parameter.shape)
