"""Param groups by pruner, and the schedulers that were made when there were fewer of them.

A dense shadow is as long as the shard that it belongs to, so prunable weights get groups of their own. Groups that
are split off come after all given ones, which keep their numbers. So a scheduler writes to the right groups even where
it silently skips the rest; since torch 2.13 it refuses groups for which it has no value.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

# What torch's schedulers keep per group; those of transformers are LambdaLRs.
_PER_GROUP = (
    "base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "base_momentums", "max_momentums",
)  # fmt: skip
_FOLLOWED = ("lr", "betas", "weight_decay")  # what a scheduler, or the user's own code, changes in a group

Groups = list[dict[str, Any]]


def split_groups(groups: Groups, of_param: dict[int, str], same: bool = False) -> tuple[Groups, list[int]]:
    """(the groups by pruner, their settings kept, and for each the number of the group that it came from). Empty ones
    are left out, as DeepSpeed does later. As for torch, params may be one tensor or a generator.

    same: the first part of each group is the given dict, which another optimizer's schedulers may write to (Accelerate
    makes DeepSpeed's CPU Adam of the groups of the user's). Frozen parameters stay in the first part: DeepSpeed fails
    on a group of nothing else.
    """
    first: list[tuple[int, dict[str, Any]]] = []
    rest: list[tuple[int, dict[str, Any]]] = []
    for number, group in enumerate(groups):
        given = group["params"]
        params = [given] if isinstance(given, torch.Tensor) else list(given)
        owners = sorted({of_param.get(id(p), "") for p in params if p.requires_grad}) or [""] * bool(params)
        owner_of = [of_param.get(id(p), "") if p.requires_grad else owners[0] for p in params]
        kept = group if same else dict(group)
        for place, owner in enumerate(owners):
            own = [p for p, its in zip(params, owner_of, strict=True) if its == owner]
            if place:
                rest.append((number, group | {"params": own}))
            else:
                kept["params"] = own
                first.append((number, kept))
    return [group for _, group in first + rest], [number for number, _ in first + rest]


def split_in_place(optimizer: torch.optim.Optimizer, of_param: dict[int, str]) -> tuple[list[int], Callable[[], None]]:
    """(the number of the group that each group of the optimizer now came from, a function that undoes it)."""
    groups, given = optimizer.param_groups, list(optimizer.param_groups)
    params = [group["params"] for group in given]
    groups[:], origins = split_groups(given, of_param, same=True)
    before = extend_schedulers(optimizer, origins, len(given))

    def undo() -> None:
        groups[:] = given
        for group, own in zip(given, params, strict=True):
            group["params"] = own
        for scheduler, name, values in before:
            setattr(scheduler, name, values)

    return origins, undo


def extend_schedulers(
    optimizer: torch.optim.Optimizer, origins: Sequence[int], given: int
) -> list[tuple[LRScheduler, str, list[Any]]]:
    """Give every scheduler of the optimizer, wherever the user holds it, its values for the new groups in place of
    those for the `given` ones, which are returned."""
    before: list[tuple[LRScheduler, str, list[Any]]] = []
    for scheduler in gc.get_objects():
        if issubclass(type(scheduler), LRScheduler) and getattr(scheduler, "optimizer", None) is optimizer:
            for name in _PER_GROUP:
                values = getattr(scheduler, name, None)
                if isinstance(values, list) and len(values) == given:
                    before.append((scheduler, name, values))
                    setattr(scheduler, name, [values[number] for number in origins])
    return before


def follow(groups: Groups, origins: Sequence[int]) -> None:
    """Groups that were split off take the rate and the weight decay that are set for their origin."""
    for group, number in zip(groups, origins, strict=True):
        origin = groups[origins.index(number)]
        for name in _FOLLOWED:
            if name in origin:
                group[name] = origin[name]


def note_decay(groups: Groups) -> None:
    """Keep the user's weight decay for the pruner, which writes its own over it in a step."""
    for group in groups:
        group["base_weight_decay"] = group["weight_decay"]


def give_back_decay(groups: Groups) -> None:
    """Between steps the weight decay of a group is the user's, who may change it."""
    for group in groups:
        group["weight_decay"] = group["base_weight_decay"]
