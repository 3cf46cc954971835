"""Where the masks of two versions differ: matrix by matrix, and summed by layer and by kind of unit.

Read from masks.safetensors, one entry at a time: keep flags of the weights of a prunable matrix, or of a site's units.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pat.export import masks

LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Row:
    """Flags of one matrix or site, or their sums; counts are of weights or of units."""

    name: str
    layer: int | None  # None: outside of the layers, or of several
    part: str  # the matrix within its layer, or the structure
    units: bool  # of a structure; else single weights
    total: int  # 0: the shapes differ, so nothing is compared
    both: int  # pruned in both
    only_a: int
    only_b: int

    @property
    def kept_a(self) -> int:
        """How many survive in A."""
        return self.total - self.both - self.only_a

    @property
    def kept_b(self) -> int:
        """How many survive in B."""
        return self.total - self.both - self.only_b


def diff(a: Path, b: Path) -> list[Row]:
    """A row for each matrix and site that either folder has flags of; where one has none, it prunes nothing there."""
    rows = []
    for name, of_a, of_b in _side_by_side(_flags(a), _flags(b)):
        known = of_a if of_a is not None else of_b
        assert known is not None
        x, y = (torch.ones_like(known) if each is None else each for each in (of_a, of_b))
        structure, colon, place = name.partition(":")
        match = LAYER.search(place if colon else name)
        part = structure if colon else (name[match.end() :] if match else name)
        counts = (0, 0, 0, 0)
        if x.shape == y.shape:
            gone_a, gone_b = x == 0, y == 0
            counts = (x.numel(), *(int(each.sum()) for each in (gone_a & gone_b, gone_a & ~gone_b, ~gone_a & gone_b)))
        rows.append(Row(name, int(match[1]) if match else None, part, bool(colon), *counts))
    return rows


def by_layer(rows: list[Row]) -> list[Row]:
    """Summed over the matrices of a layer, and over its sites, apart."""
    return _summed(rows, lambda row: (-1 if row.layer is None else row.layer, row.units), _layer_name)


def by_part(rows: list[Row]) -> list[Row]:
    """Summed over the layers, for each matrix and structure."""
    return _summed(rows, lambda row: (row.units, row.part), lambda row: row.part)


def _layer_name(row: Row) -> str:
    return "elsewhere" if row.layer is None else f"layer {row.layer}"


def _summed(rows: list[Row], key: Callable[[Row], tuple], named: Callable[[Row], str]) -> list[Row]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    sums = []
    for _, members in sorted(groups.items(), key=lambda item: item[0]):
        first = members[0]
        counts = (sum(getattr(each, field) for each in members) for field in ("total", "both", "only_a", "only_b"))
        sums.append(Row(named(first), first.layer, first.part, first.units, *counts))
    return sums


def _flags(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 keep flags), in name order; none where nothing was pruned."""
    if masks.names(folder):
        yield from masks.read_masks(folder)


def _side_by_side(
    a: Iterator[tuple[str, Tensor]], b: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """Both in name order, as one."""
    x, y = next(a, None), next(b, None)
    while x or y:
        if x and y and x[0] == y[0]:
            yield x[0], x[1], y[1]
            x, y = next(a, None), next(b, None)
        elif x and (not y or x[0] < y[0]):
            yield x[0], x[1], None
            x = next(a, None)
        else:
            assert y is not None
            yield y[0], None, y[1]
            y = next(b, None)
