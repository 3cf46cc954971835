"""All units of a pruner as one vector: how it splits into sites, and what it costs in parameters.

# U units, over all sites, in the order of the sites
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from pat.common.typed import split
from pat.models.anatomy import Anatomy
from pat.pruning.structures import costs, parts
from pat.pruning.structures.sites import Site


class Inventory:
    """The units of some sites of one model."""

    def __init__(self, anatomy: Anatomy, sites: Sequence[Site]) -> None:
        self.anatomy, self.sites = anatomy, list(sites)
        self.sizes = [site.num_units for site in sites]
        self._cost = costs.parameters(anatomy)

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """(U,) as (num_units,) per site."""
        return {site.name: part for site, part in zip(self.sites, split(values, self.sizes), strict=True)}

    def join(self, by_site: Mapping[str, Tensor]) -> Tensor:
        """(num_units,) per site as (U,)."""
        return torch.cat([by_site[site.name] for site in self.sites])

    def ones(self) -> Tensor:
        """(U,) fp32 ones on the host, as gates that are all open."""
        return torch.ones(sum(self.sizes))

    @cached_property
    def is_block(self) -> Tensor:
        """(U,) bool: whether the unit is a whole layer, whose gate is in no weight."""
        return torch.cat([torch.full((site.num_units,), site.sublayer is None) for site in self.sites])

    @cached_property
    def is_whole(self) -> Tensor:
        """(U,) bool: whether the unit is a whole layer, or the attention or MLP of one."""
        return torch.cat([torch.full((site.num_units,), not site.features) for site in self.sites])

    @cached_property
    def parameters(self) -> set[str]:
        """All parameters of which a unit owns a part."""
        return {part.parameter for site in self.sites for part in site.parts}

    @cached_property
    def numel(self) -> int:
        """Parameters that would go with all units."""
        return self.removed(torch.zeros(sum(self.sizes), dtype=torch.bool))

    def removed(self, keep: Tensor) -> int:
        """Parameters that go with the units whose flag, of (U,) bool, is down."""
        left = self._cost.total(costs.widths(self.anatomy, self.sites, self.split(keep)))
        return self._cost.total(costs.dense_widths(self.anatomy)) - left

    def removed_from(self, keep: Tensor, names: Iterable[str]) -> int:
        """Elements of the named parameters that go with the units whose flag, of (U,) bool, is down."""
        shapes = self.anatomy.shapes
        alive = parts.factors(self.sites, self.split(keep.float()), shapes, gated=False)
        gone = 0
        for name in names:
            left = {f.dim: int(f.values.count_nonzero()) for f in alive.get(name, ())}
            gone += math.prod(shapes[name]) - math.prod(left.get(d, n) for d, n in enumerate(shapes[name]))
        return gone

    def counts(self, keep: Tensor) -> dict[str, list[int]]:
        """Per structure: the units that each site keeps, of (U,) bool."""
        counts: dict[str, list[int]] = {}
        for site, flags in zip(self.sites, split(keep, self.sizes), strict=True):
            counts.setdefault(site.structure, []).append(int(flags.sum()))
        return counts

    def in_words(self, counts: Mapping[str, list[int]]) -> str:
        """`768 of 1536 ffn, 2 of 3 kv_groups in every layer; 24 of 30 layers`."""
        full = self.counts(self.ones().bool())
        inner = [f"{_range(counts[s])} of {_range(n)} {s}" for s, n in full.items() if max(n) > 1]
        pooled = [f"{sum(counts[s])} of {sum(n)} {s}" for s, n in full.items() if max(n) == 1]
        return "; ".join([f"{', '.join(inner)} in every layer"] * bool(inner) + pooled)


def _range(counts: list[int]) -> str:
    """`768`, or `512 to 832` where layers differ."""
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
