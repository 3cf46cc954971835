"""Masks and gates on one parameter: for instance KV groups and neurons by L0, then 2:4 in the rows that stay.

That is exact where the gates are folded before the masks begin, and where every N:M group is either gone as a whole or
left as a whole: then it is N:M in the narrowed matrix, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pat.pruning.granularity.n_of_m import NOfM
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.weights.pruner import WeightPruner


def check(structures: StructurePruner, weights: WeightPruner) -> None:
    """ValueError where the masks would not be exact in the narrowed model."""
    both = shared(structures, weights.shapes)
    if not both:
        return
    first = min(both)
    pair = f"pruners.{structures.name} has gates on units of {first}, and pruners.{weights.name} masks it"
    if not isinstance(weights.granularity, NOfM):
        raise ValueError(
            f"{pair}: masks that share a parameter with gates must have granularity n_of_m, because the budget of "
            f"{weights.granularity.name} would count weights that the gates remove; exclude {first} and parameters "
            "like it from the masks"
        )
    m = weights.granularity.m
    for part in (part for site in structures.sites for part in site.parts):
        inputs = 0 if part.parameter in weights.transposed else 1
        if part.parameter in both and part.dim == inputs:
            if part.start % m or part.per_unit % m:
                raise ValueError(
                    f"pruners.{structures.name} takes {part.per_unit} of the inputs of {part.parameter} at a time, "
                    f"which cuts the groups of {m} of pruners.{weights.name}: exclude it and parameters like it from "
                    "the masks"
                )
    hard = structures.timeline.hard_from
    if weights.timeline.start < hard:
        raise ValueError(
            f"{pair}, from step {weights.timeline.start}, but the gates are hard only at step {hard}: set "
            f"pruners.{weights.name}.schedule.start to {hard} or later, or exclude {first} and parameters like it"
        )


def shared(structures: StructurePruner, names: Iterable[str]) -> set[str]:
    """The parameters among these of which a unit owns a part."""
    return structures.units.parameters & set(names)


def emptied(structure_pruners: Iterable[StructurePruner], weights: WeightPruner) -> set[str]:
    """The matrices of a weight pruner of which gates have removed everything."""
    return {
        name
        for structures in structure_pruners
        for name in shared(structures, weights.shapes)
        if structures.units.removed_from(structures.state.keep, [name]) == math.prod(weights.shapes[name])
    }


def numel(structures: StructurePruner, weights: WeightPruner) -> int:
    """Weights that both may prune, to be counted once."""
    names = shared(structures, weights.shapes)
    return structures.units.removed_from(0 * structures.units.ones(), names)


def num_pruned(structures: StructurePruner, weights: WeightPruner) -> int:
    """Weights that both have pruned. Every N:M group gives the same number, so it is a fraction of what gates took."""
    gone = structures.units.removed_from(structures.state.keep, shared(structures, weights.shapes))
    return gone * weights.num_pruned // weights.numel


def target_weights(structures: StructurePruner, weights: WeightPruner) -> int:
    """Weights that both prune in the end."""
    gone = structures.units.removed_from(structures.goal.keep, shared(structures, weights.shapes))
    return gone * weights.target_weights // weights.numel
