"""Masks inside what gates leave: for instance KV groups and neurons by L0, then 2:4 in the rows that stay.

Both may name the same parameter where their order and the units make that exact: the gates are folded before the masks
begin, and every N:M group is either gone as a whole or left as a whole, so it is N:M in the sliced matrix too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pat.pruning.granularity.n_of_m import NOfM
from pat.pruning.structures.pruner import GatePruner
from pat.pruning.weights.pruner import MaskPruner


def check(gate: GatePruner, mask: MaskPruner) -> None:
    """ValueError where the masks would not be exact in what the gates leave."""
    both = shared(gate, mask.shapes)
    if not both:
        return
    first, pair = min(both), f"pruners.{gate.name} has gates on units of {min(both)}, and pruners.{mask.name} masks it"
    if not isinstance(mask.granularity, NOfM):
        raise ValueError(
            f"{pair}: only n_of_m is exact inside what gates leave, as the budget of {mask.granularity.name} would "
            f"count what they remove; exclude {first} and its like from the masks"
        )
    m = mask.granularity.m
    for part in (part for site in gate.sites for part in site.slices):
        if part.parameter in both and part.dim == len(mask.shapes[part.parameter]) - 1:
            if part.start % m or part.per_unit % m:
                raise ValueError(
                    f"pruners.{gate.name} takes {part.per_unit} of the inputs of {part.parameter} at a time, which "
                    f"cuts the groups of {m} of pruners.{mask.name}: exclude it and its like from the masks"
                )
    if mask.timeline.start < gate.timeline.hard_from:
        raise ValueError(
            f"{pair}, from step {mask.timeline.start}, but the gates are hard only at step "
            f"{gate.timeline.hard_from}: set "
            f"pruners.{mask.name}.schedule.start to {gate.timeline.hard_from} or later, or exclude {first} and its like"
        )


def shared(gate: GatePruner, names: Iterable[str]) -> set[str]:
    """The parameters among these of which a unit owns a slice."""
    return gate.units.parameters & set(names)


def emptied(gates: Iterable[GatePruner], mask: MaskPruner) -> set[str]:
    """The matrices of a mask of which gates have removed everything."""
    return {
        name
        for gate in gates
        for name in shared(gate, mask.shapes)
        if gate.units.removed_from(gate.state.keep, [name]) == math.prod(mask.shapes[name])
    }


def numel(gate: GatePruner, mask: MaskPruner) -> int:
    """Weights that both may prune, to be counted once."""
    names = shared(gate, mask.shapes)
    return gate.units.removed_from(0 * gate.units.ones(), names)


def num_pruned(gate: GatePruner, mask: MaskPruner) -> int:
    """Weights that both have pruned. Every N:M group gives the same number, so it is a fraction of what gates took."""
    gone = gate.units.removed_from(gate.state.keep, shared(gate, mask.shapes))
    return gone * mask.num_pruned // mask.numel


def target_weights(gate: GatePruner, mask: MaskPruner) -> int:
    """Weights that both prune in the end."""
    gone = gate.units.removed_from(gate.final_of_a_tie, shared(gate, mask.shapes))
    return gone * mask.target_weights // mask.numel
