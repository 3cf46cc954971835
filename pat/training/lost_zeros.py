"""A model that comes with weights at 0, pruned by an earlier run or another tool: whether this run keeps them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import Comm
from pat.common.parameters import logical_numel
from pat.models import adapters
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.timetable import percent
from pat.pruning.weights.matrices import Matrices
from pat.pruning.weights.pruner import WeightPruner
from pat.schema import Config

LEAST = 0.1  # share of zeros from which a model counts as pruned, and of those that would go from which it is said
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
    zero = sum(_zeros(model, changed, comm))
    every = sum(logical_numel(model.get_parameter(name)) for name in changed)
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


@torch.no_grad()
def filled_again(model: nn.Module, pruner: WeightPruner, comm: Comm) -> str | None:
    """A warning where more of a pruner's weights are 0 than its target removes, so that it keeps some of the zeros and
    may fill them; None where it does not. Collective."""
    sizes, zeros = [*map(math.prod, pruner.shapes.values())], _zeros(model, list(pruner.shapes), comm)
    target, total = pruner.budget.sparsity, sum(sizes)
    if isinstance(pruner.scope, Global):
        open_ = sum(zeros) - target * total
    else:
        open_ = sum(max(0.0, zero - target * size) for zero, size in zip(zeros, sizes, strict=True))
    if open_ < LEAST * total:
        return None
    return (
        f"warning: {percent(sum(zeros) / total)} of the weights of pruners.{pruner.name} are 0 already, and its target "
        f"is {percent(target)}: {percent(open_ / total)} of them count as weights that stay, and may be filled. A "
        "target above what is 0 keeps all of it"
    )


def _zeros(model: nn.Module, names: Sequence[str], comm: Comm) -> list[int]:
    """How many weights of each parameter are 0. Collective."""
    found = [torch.count_nonzero(_share(model.get_parameter(name), comm) == 0) for name in names]
    return comm.sum(torch.tensor(found, dtype=torch.int64, device=comm.device)).tolist()


def _share(param: Any, comm: Comm) -> Tensor:
    """What this rank counts of a parameter: its part without the padding, or, where all have it whole, rank 0 all."""
    if not hasattr(param, "ds_tensor"):
        return param if comm.rank == 0 else param.new_empty(0)
    part = param.ds_tensor.view(-1)
    return part[: max(0, logical_numel(param) - comm.rank * part.numel())]
