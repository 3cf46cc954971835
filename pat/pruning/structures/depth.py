"""Which layers gates have taken out of the forward, so that their output is their input."""

from __future__ import annotations

from collections.abc import Sequence

from pat.common.typed import split
from pat.pruning.structures.pruner import GatePruner


def dropped_layers(gates: Sequence[GatePruner]) -> set[int]:
    """Layers in the coming forward whose own gate, or the gates of all of whose sublayers, are 0."""
    closed: dict[int, set[int]] = {}
    for gate in gates:
        z = gate.state.keep.float() if gate.hardened else gate.multiplied
        values = () if z is None else split(z, gate.units.sizes)
        for site, value in zip(gate.sites, values, strict=z is not None):
            if not site.features and not bool(value.any()):
                every = range(len(gate.anatomy.layers[site.layer].sublayers))
                closed.setdefault(site.layer, set()).update(every if site.sublayer is None else [site.sublayer])
    return {
        layer for gate in gates for layer in closed if len(closed[layer]) == len(gate.anatomy.layers[layer].sublayers)
    }
