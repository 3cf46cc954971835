"""Whether replicated tensors are equal on all ranks: one all-reduce of a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.common.typed import ints
from pat.pruning.types import PromiseBroken


def check_agreement(what: str, tensors: Mapping[str, Tensor], world: Comm) -> None:
    """Raises PromiseBroken, on every rank, where a bit of `tensors` differs between ranks. Collective."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    mine = int.from_bytes(sha.digest()[:7], "little")
    most, least = ints(world.max(torch.tensor([mine, -mine], dtype=torch.int64)))
    if most != -least:
        every = world.gather(mine)
        others = ", ".join(str(rank) for rank, its in enumerate(every) if its != every[0])
        raise PromiseBroken(
            f"{what} differ between rank 0 and rank {others}, so each would prune other units: run the same versions "
            "on the same kind of machine everywhere (`pat doctor`), and go on from the last checkpoint"
        )
