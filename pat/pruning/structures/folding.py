"""Folds gates for good into the weights that they multiply, and into Adam's moments of them.

# U units over all sites of a pruner
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pat.pruning.structures import parts
from pat.pruning.structures.gate_history import GateHistory
from pat.pruning.structures.parts import Factors
from pat.pruning.structures.sites import Site
from pat.pruning.structures.units import Inventory
from pat.pruning.types import PromiseBroken
from pat.zero.layouts import ZeroLayout


def fold(
    layout: ZeroLayout,
    sites: Sequence[Site],
    units: Inventory,
    z: Tensor,  # (U,) fp32
    keep: Tensor,  # (U,) bool
    history: GateHistory,
) -> None:
    """Multiply weights by z, and moments as the history of z demands; removed units become 0 with their moments.

    Collective.
    """
    shapes, staying = units.anatomy.shapes, alive(sites, units, keep)
    parts.multiply(layout, parts.factors(sites, units.split(z), shapes, gated=True))
    parts.multiply(layout, staying)
    blocks = [site for site in sites if site.sublayer is None]
    for moment, factor in history.factors().items():
        by = units.split(factor)
        parts.multiply(layout, parts.factors(sites, by, shapes, gated=True), moment)
        parts.multiply(layout, parts.factors(blocks, by, shapes, gated=False), moment)
        parts.multiply(layout, staying, moment)
    layout.refresh_forward()


def alive(sites: Sequence[Site], units: Inventory, keep: Tensor) -> Factors:
    """1 for elements of what is kept by (U,) bool, 0 for those of what is gone."""
    return parts.factors(sites, units.split(keep.float()), units.anatomy.shapes, gated=False)


def check(pruner: str, layout: ZeroLayout, sites: Sequence[Site], units: Inventory, keep: Tensor) -> None:
    """Whether all weights of removed units, by (U,) bool, are exactly 0. Raises PromiseBroken. Collective."""
    alive_again = parts.count_nonzero(layout, alive(sites, units, keep))
    if alive_again:
        raise PromiseBroken(f"{alive_again} weights of units that pruner {pruner} has removed are not zero")
