"""Which layers gates have taken out of the forward, so that their output is their input."""

from __future__ import annotations

from collections.abc import Sequence

from pat.common.typed import split
from pat.pruning.structures.pruner import StructurePruner


def dropped_layers(pruners: Sequence[StructurePruner]) -> set[int]:
    """Layers in the coming forward whose own gate, or the gates of all of whose sublayers, are 0."""
    closed: dict[int, set[int]] = {}
    for pruner in pruners:
        z = pruner.state.keep.float() if pruner.hardened else pruner.multiplied
        values = () if z is None else split(z, pruner.units.sizes)
        for site, value in zip(pruner.sites, values, strict=z is not None):
            if not site.features and not bool(value.any()):
                every = range(len(pruner.anatomy.layers[site.layer].sublayers))
                closed.setdefault(site.layer, set()).update(every if site.sublayer is None else [site.sublayer])
    return {
        layer
        for pruner in pruners
        for layer in closed
        if len(closed[layer]) == len(pruner.anatomy.layers[layer].sublayers)
    }
