"""Units in the optimizer's shards: scaling, clearing and measuring the parts that a unit owns, on flat pieces.

# U units over all sites; a factor is a vector over one dimension of one parameter
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pat.pruning.structures.sites import Part, Site
from pat.zero.layouts import Segment, Shard, ZeroLayout

CHUNK = 1 << 20  # elements worked on at a time


@dataclass(frozen=True)
class Factor:
    """A vector over a dimension of a parameter."""

    dim: int
    values: Tensor  # (size of the dimension,)
    origin: float = 0.0  # the factor multiplies origin + parameter

    def along(self, segment: Segment, start: int, stop: int) -> Tensor:
        """(stop - start,) the values at elements [start, stop) of a segment."""
        size, inner = segment.shape[self.dim], math.prod(segment.shape[self.dim + 1 :])
        begin, count = segment.start + start, stop - start
        if inner == 1:  # over and over; without a division for every element, which takes much longer
            skip = begin % size
            return self.values.repeat(-(-(skip + count) // size))[skip : skip + count]
        first, last = begin // inner, (begin + count - 1) // inner
        rows = torch.arange(first, last + 1, device=self.values.device) % size
        return self.values[rows].repeat_interleave(inner)[begin - first * inner :][:count]

    def apply(self, weights: Tensor, along: Tensor) -> Tensor:
        """W' with origin + W' = along (origin + W); where `along` is 1, exactly W."""
        return weights + (along - 1.0) * (self.origin + weights) if self.origin else weights * along


Factors = Mapping[str, Sequence[Factor]]  # by parameter


def factors(
    sites: Sequence[Site],
    values: Mapping[str, Tensor],  # per site (num_units,)
    shapes: Mapping[str, tuple[int, ...]],
    gated: bool,  # only the parts that a gate multiplies
    fill: float = 1.0,  # where no unit is
) -> dict[str, list[Factor]]:
    """What each unit's value means for the elements of the parameters."""
    by_dim: dict[str, dict[int, Tensor]] = {}
    origins: dict[str, float] = {}
    for site in sites:
        value = values[site.name]
        for part in site.gated if gated else site.parts:
            vectors = by_dim.setdefault(part.parameter, {})
            size = shapes[part.parameter][part.dim]
            vector = vectors.setdefault(part.dim, torch.full((size,), fill, dtype=value.dtype, device=value.device))
            vector[_span(part, site.num_units)] *= value.repeat_interleave(part.per_unit)
            origins[part.parameter] = part.origin
    return {name: [Factor(dim, v, origins[name]) for dim, v in vectors.items()] for name, vectors in by_dim.items()}


def _span(part: Part, num_units: int) -> slice:
    return slice(part.start, part.start + num_units * part.per_unit)


def pieces(layout: ZeroLayout, names: Factors) -> Iterator[tuple[Shard, Segment, int, int]]:
    """(shard, segment, start, stop) that cover this rank's part of the named parameters."""
    for shard in layout.shards:
        for segment in shard.segments:
            if segment.name in names:
                for start in range(0, segment.numel, CHUNK):
                    yield shard, segment, start, min(start + CHUNK, segment.numel)


@torch.no_grad()
def multiply(layout: ZeroLayout, by: Factors, moment: str | None = None) -> None:
    """Multiply this rank's fp32 weights, or one of Adam's moments of them, in place."""
    for shard, segment, start, stop in pieces(layout, by):
        target = shard.view
        if moment is not None:
            state = layout.base.state[shard.flat]
            if moment not in state:
                continue
            target = state[moment].view(-1)
        for factor in by[segment.name]:
            part = slice(segment.offset + start, segment.offset + stop)
            near = factor.along(segment, start, stop).to(target.device)
            target[part] = factor.apply(target[part], near) if moment is None else target[part] * near


@torch.no_grad()
def count_nonzero(layout: ZeroLayout, where: Factors) -> int:
    """Number of nonzero weights whose factor is 0, over all ranks. Collective."""
    mine = 0
    for shard, segment, start, stop in pieces(layout, where):
        weight = shard.view[segment.offset + start : segment.offset + stop]
        dead = torch.zeros(stop - start, dtype=torch.bool, device=weight.device)
        for factor in where[segment.name]:
            dead |= factor.along(segment, start, stop).to(weight.device) == 0
        mine += int(weight[dead].count_nonzero())
    return int(layout.comm.sum(torch.tensor(mine, dtype=torch.int64)))


@torch.no_grad()
def mean_square(layout: ZeroLayout, sites: Sequence[Site], shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """(U,) fp32: sum w^2 / n over the n weights that a unit owns, in fp64, in the order of the sites. Collective."""
    total = sum(site.num_units for site in sites)
    sums = torch.zeros(total + 1, dtype=torch.float64)  # the last one: weights of no unit
    counts = torch.zeros(total, dtype=torch.float64)
    owners: dict[str, list[Factor]] = {}
    first = 0
    for site in sites:
        for part in site.parts:
            size = shapes[part.parameter][part.dim]
            vector = torch.full((size,), total)
            own = torch.arange(first, first + site.num_units).repeat_interleave(part.per_unit)
            vector[_span(part, site.num_units)] = own
            owners.setdefault(part.parameter, []).append(Factor(part.dim, vector))
            counts[first : first + site.num_units] += part.per_unit * (math.prod(shapes[part.parameter]) // size)
        first += site.num_units
    for shard, segment, start, stop in pieces(layout, owners):
        square = shard.view[segment.offset + start : segment.offset + stop].cpu().double() ** 2
        for owner in owners[segment.name]:
            sums.index_add_(0, owner.along(segment, start, stop), square)
    return (layout.comm.sum(sums)[:total] / counts).float()
