"""Gates into the weights that they multiply, for good: weights, and Adam's moments of them.

# U units over all sites of a pruner
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pat.pruning import unit_slices
from pat.pruning.gate_history import GateHistory
from pat.pruning.inventory import Inventory
from pat.pruning.shards import Shards
from pat.pruning.sites import Site
from pat.pruning.unit_slices import Factors


def fold(
    shards: Shards,
    sites: Sequence[Site],
    units: Inventory,
    z: Tensor,  # (U,) fp32
    keep: Tensor,  # (U,) bool
    history: GateHistory,
) -> None:
    """Multiply by z, and the moments by what the past of z makes of them; what is gone becomes 0 with its moments.

    Collective.
    """
    shapes, staying = units.anatomy.shapes, alive(sites, units, keep)
    unit_slices.multiply(shards, unit_slices.factors(sites, units.split(z), shapes, gated=True))
    unit_slices.multiply(shards, staying)
    blocks = [site for site in sites if site.sublayer is None]
    for moment, factor in history.factors().items():
        by = units.split(factor)
        unit_slices.multiply(shards, unit_slices.factors(sites, by, shapes, gated=True), moment)
        unit_slices.multiply(shards, unit_slices.factors(blocks, by, shapes, gated=False), moment)
        unit_slices.multiply(shards, staying, moment)
    shards.refresh_forward()


def alive(sites: Sequence[Site], units: Inventory, keep: Tensor) -> Factors:
    """1 for elements of what is kept by (U,) bool, 0 for those of what is gone."""
    return unit_slices.factors(sites, units.split(keep.float()), units.anatomy.shapes, gated=False)
