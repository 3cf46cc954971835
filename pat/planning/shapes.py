"""The parameters of a model, as param groups: all that the arithmetic needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pat.common.parameters import DTYPES
from pat.pruning.pruner import Pruner
from pat.schema import Config
from pat.training.dry_run import HARD_BYTES, SCORE_BYTES, SOFT_BYTES
from pat.zero.engine import param_groups


@dataclass(frozen=True)
class ParamGroup:
    """One param group of the optimizer: all of one pruner, or of none."""

    numels: tuple[int, ...]  # of its parameters, in order
    soft_bytes: int = 0  # of pruner state per element, while masks may move
    hard_bytes: int = 0  # once they are final
    score: bool = False  # whether the criterion keeps one

    @property
    def numel(self) -> int:
        """Elements of all its parameters, as they are before ZeRO shares them out."""
        return sum(self.numels)

    @property
    def prunable(self) -> bool:
        """Whether a weight pruner owns it."""
        return self.soft_bytes > 0


@dataclass(frozen=True)
class Shapes:
    """A model and its pruners."""

    groups: tuple[ParamGroup, ...]
    frozen: tuple[int, ...] = ()  # numels
    gate_bytes: int = 0  # state of all gates, on every rank
    teacher: int = 0  # parameters

    @property
    def trained(self) -> int:
        """Elements that the optimizer steps."""
        return sum(group.numel for group in self.groups)

    @property
    def every(self) -> int:
        """Elements of all parameters, trained and frozen; the teacher's are not among them."""
        return self.trained + sum(self.frozen)

    @property
    def prunable(self) -> int:
        """Elements that masks take."""
        return sum(group.numel for group in self.groups if group.prunable)


def shapes_of(config: Config, model: torch.nn.Module, pruner: Pruner, teacher: int = 0) -> Shapes:
    """Of a model on the meta device with its pruners attached (`pat.training.dry_run.attached`)."""
    weight_pruners = {each.name: each for each in pruner.weight_pruners}
    names = {id(p): name for name, p in model.named_parameters()}
    groups = []
    for group in param_groups(model, config.optim, pruner.owner):
        numels = tuple(p.numel() for p in group["params"])
        owner = pruner.owner.get(names[id(group["params"][0])])
        if owner is None:
            groups.append(ParamGroup(numels))
            continue
        score = weight_pruners[owner].criterion.needs_score
        groups.append(ParamGroup(numels, SOFT_BYTES + SCORE_BYTES * score, HARD_BYTES, score))
    frozen = tuple(p.numel() for p in model.parameters() if not p.requires_grad)
    return Shapes(tuple(groups), frozen, sum(each.state_bytes() for each in pruner.structure_pruners), teacher)


def itemsize(dtype: str) -> int:
    """Bytes of an element of bf16, fp16 or fp32."""
    return DTYPES[dtype].itemsize
