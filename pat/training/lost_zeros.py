"""A model that comes with weights at 0, pruned by an earlier run or another tool: whether this run keeps them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import Comm
from pat.common.parameters import logical_numel
from pat.models import adapters
from pat.pruning.timetable import percent
from pat.pruning.weights.matrices import Matrices
from pat.schema import Config

LEAST = 0.1  # share of zeros from which a model counts as pruned
KEEPS = (
    "pruners.weights.criterion.name=magnitude", "pruners.weights.scope=global",
    "pruners.weights.schedule.name=one_shot", "pruners.weights.schedule.start=0",
)  # fmt: skip


@torch.no_grad()
def lost_zeros(
    model: nn.Module,  # as it was read, whole on every rank or partitioned
    config: Config,
    kept: Collection[str],  # parameters whose zeros a pruner decides on
    comm: Comm,
) -> str | None:
    """A warning where the run would fill the zeros of the layers' linear maps; None where it does not. Collective."""
    if not config.train.num_steps:
        return None
    found = [name for name in sorted(Matrices.of(model).linear) if name not in kept and ".lora_" not in name]
    changed = [name for name in found if model.get_parameter(name).requires_grad or adapters.BASE in name]
    params = [model.get_parameter(name) for name in changed]
    counts = sum(int(torch.count_nonzero(_share(param, comm) == 0)) for param in params)
    zero = int(comm.sum(torch.tensor(counts, device=comm.device)))
    every = sum(map(logical_numel, params))
    if not every or zero / every < LEAST:
        return None
    share = percent(zero / every)
    said = f"warning: {share} of the weights in the layers' linear maps are 0 in {config.model.path}, and"
    if config.peft.r:
        return f"{said} merging the adapters will fill them: train without peft, or prune after training"
    return (
        f"{said} nothing in this run keeps them so: training fills them. A pruner of recipe=encoder or recipe=decoder "
        f"keeps them: {' '.join(KEEPS)} pruners.weights.budget.sparsity={zero / every!r}"
    )


def _share(param: Any, comm: Comm) -> Tensor:
    """What this rank counts of a parameter: its part without the padding, or, where all have it whole, rank 0 all."""
    if not hasattr(param, "ds_tensor"):
        return param if comm.rank == 0 else param.new_empty(0)
    part = param.ds_tensor.view(-1)
    return part[: max(0, logical_numel(param) - comm.rank * part.numel())]
