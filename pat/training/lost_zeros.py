"""A model that comes with weights at 0, pruned by an earlier run or another tool: whether this run keeps them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from pat.common.comm import Comm
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
    counts = torch.zeros(2, dtype=torch.int64)
    for param in map(model.get_parameter, changed):
        here = getattr(param, "ds_tensor", param)
        counts += torch.tensor([int(torch.count_nonzero(here == 0)), here.numel()])
    zero, every = comm.sum(counts.to(comm.device)).tolist()
    if not every or zero / every < LEAST:
        return None
    share = percent(zero / every)
    said = f"warning: {share} of the weights in the layers' linear maps are 0 in {config.model.path}, and"
    if config.peft.r:
        return f"{said} merging the adapters will fill them: train without peft, or prune after training"
    return (
        f"{said} nothing in this run keeps them so: training fills them. A pruner of recipe=encoder or recipe=decoder "
        f"keeps them: {' '.join(KEEPS)} pruners.weights.budget.sparsity={zero / every:.4f}"
    )
