"""Groups of consecutive elements (N:M groups, rows of blocks) over parameters that ranks cut anywhere.

# width: elements of a group; group i of a parameter is its elements [i * width, (i + 1) * width), row-major
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from pat.common.comm import Comm
from pat.common.typed import ints
from pat.pruning.types import ScoredSegment


@dataclass(frozen=True)
class Span:
    """Which elements of a parameter some rank holds: a segment without its scores, to be sent to other ranks."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int


def gather_spans(segments: Sequence[ScoredSegment], comm: Comm) -> list[Span]:
    """What all ranks hold, in global order. Collective."""
    mine = [Span(segment.name, segment.shape, segment.start, segment.numel) for segment in segments if segment.numel]
    spans = sorted((s for each in comm.gather(mine) for s in each), key=lambda s: (s.name, s.start))
    held: dict[str, int] = {}
    for span in spans:
        assert span.start == held.get(span.name, 0), f"{span.name}: element {span.start} is held twice or by no rank"
        held[span.name] = span.start + span.numel
    for name, shape in shapes(spans).items():
        assert held[name] == prod(shape), f"{name}: its elements from {held[name]} on are held by no rank"
    return spans


def first_pieces(segments: Sequence[ScoredSegment], comm: Comm) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of all ranks, in name order, sent by the rank that holds its first element.

    At ZeRO 3 every rank holds a piece of every parameter: `gather_spans` has ranks x parameters entries, which each
    rank would sort. Collective.
    """
    mine = [(segment.name, segment.shape) for segment in segments if segment.start == 0 and segment.numel]
    pairs = sorted(pair for each in comm.gather(mine) for pair in each)
    every = dict(pairs)
    index = {name: i for i, name in enumerate(every)}
    held = torch.zeros(len(every) + 1, dtype=torch.int64)  # the last: of parameters whose beginning no rank holds
    for segment in segments:
        held[index.get(segment.name, -1)] += segment.numel
    *counts, strange = ints(comm.sum(held))
    assert not strange, (
        f"{', '.join({r.name for r in segments if r.name not in every})}: its first element is held by no rank"
    )
    for (name, shape), count in zip(every.items(), counts, strict=True):
        assert count == prod(shape), f"{name}: of its {prod(shape)} elements {count} are held: some twice or by no rank"
    return every


def shapes(spans: Sequence[Span]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, in name order."""
    return {span.name: span.shape for span in spans}


def whole_groups(start: int, numel: int, width: int) -> tuple[int, int]:
    """The [begin, end) of the elements whose groups lie whole inside [start, start + numel); maybe empty."""
    begin, end = -(-start // width) * width, (start + numel) // width * width
    return (begin, end) if begin < end else (start, start)


def partial_groups(start: int, numel: int, width: int) -> list[tuple[int, int]]:
    """The [begin, end) of each piece of a group that is not whole inside [start, start + numel): at most two."""
    end = start + numel
    whole_begin, whole_end = whole_groups(start, numel, width)
    if whole_begin < whole_end:
        pieces = [(start, whole_begin), (whole_end, end)]
    else:
        border = min((start // width + 1) * width, end)
        pieces = [(start, border), (border, end)]
    return [(a, b) for a, b in pieces if a < b]


def straddlers(spans: Sequence[Span], width: Callable[[tuple[int, ...]], int]) -> list[tuple[str, int]]:
    """(parameter, group) of every group that no single span holds whole, in global order."""
    cut = {
        (span.name, begin // width(span.shape))
        for span in spans
        for begin, _ in partial_groups(span.start, span.numel, width(span.shape))
    }
    return sorted(cut)
