"""The collectives that pruning needs, over the ranks that hold different shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def barrier() -> None:
    """Wait for every rank of the process group. Collective."""
    dist.barrier()


@dataclass(frozen=True)
class Comm:
    """Sums, maxima and broadcasts over ranks. Collective: every rank, same order.

    `LOCAL` is the degenerate case: one process, or shards that every rank holds whole (ZeRO 0).
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # the device on which the backend reduces

    def sum(self, tensor: Tensor) -> Tensor:
        """A new tensor, on the given one's device: the sum over ranks."""
        return self.sum_(tensor.clone())

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in the tensor's own memory."""
        return self._reduce_(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """A new tensor, on the given one's device: the maximum over ranks."""
        return self._reduce_(tensor.clone(), dist.ReduceOp.MAX)

    def sum_on(self, owner: int, tensor: Tensor) -> Tensor:
        """Sum over ranks, on rank `owner`; what the other ranks get means nothing. The given tensor is used up."""
        if self.world_size == 1:
            return tensor
        moved = tensor.to(self.device, copy=False)
        dist.reduce(moved, owner)
        return moved.to(tensor.device)

    def broadcast(self, owner: int, tensor: Tensor) -> Tensor:
        """The tensor of rank `owner`, bit for bit; the other ranks give one of its shape and dtype to write into."""
        if self.world_size == 1:
            return tensor
        moved = tensor.to(self.device, copy=False).contiguous()
        dist.broadcast(moved, owner)
        return moved.to(tensor.device)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            barrier()

    def gather(self, item: Any) -> list[Any]:
        """Each rank's (small, picklable) item, in rank order."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def _reduce_(self, tensor: Tensor, op: Any) -> Tensor:
        if self.world_size == 1:
            return tensor
        moved = tensor.to(self.device, copy=False)
        dist.all_reduce(moved, op=op)
        return tensor if moved is tensor else tensor.copy_(moved)


LOCAL = Comm()
