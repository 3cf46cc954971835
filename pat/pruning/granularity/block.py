"""Blocks of weights, rows x cols of a weight (out, in)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, frexp, ldexp, log2
from typing import ClassVar

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.pruning.scopes import Scope
from pat.pruning.types import Granularity, ScoredSegment
from pat.pruning.weights.arrays import chunk_numel, chunks
from pat.pruning.weights.selection import refuse_nan, select_units
from pat.pruning.weights.spans import gather_spans, partial_groups, shapes, straddlers, whole_groups

MAX_WEIGHTS = 1 << 18  # of a block: the exact sum then resolves the highest score to 25 bits

# A strip is one row of blocks: rows x in consecutive weights, with in / cols blocks.


@dataclass(frozen=True, kw_only=True)
class Block(Granularity):
    """rows x cols weights live or die together, by the sum of their scores.

    The sum is exact, so that it does not depend on which rank holds which weight: a score counts as a whole number of
    2^-b of the highest finite magnitude (rounded up to a power of two), with b as large as int64 allows: 41 for 32 x
    32. An infinite score counts for more than a block of finite ones; one +inf cancels one -inf.
    Source: Lagunas et al. 2021, arXiv:2109.04838.
    """

    name: str = "block"
    rows: int  # outputs that a block spans
    cols: int  # inputs that a block spans

    oriented: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1 or self.rows * self.cols > MAX_WEIGHTS:
            raise ValueError(
                f"block needs rows and cols of at least 1 and at most {MAX_WEIGHTS} weights in all, "
                f"not rows={self.rows}, cols={self.cols}."
            )

    @property
    def weights_per_unit(self) -> int:
        """Weights of a block."""
        return self.rows * self.cols

    def validate(self, name: str, shape: tuple[int, ...]) -> None:
        """Blocks must tile the matrix."""
        if shape[-2] % self.rows or shape[-1] % self.cols:
            raise ValueError(
                f"block: {self.rows} x {self.cols} blocks do not divide {name} of {shape[-2]} x {shape[-1]}; "
                "exclude it or choose other rows and cols."
            )

    def select(self, segments: Sequence[ScoredSegment], sparsity: float, scope: Scope, comm: Comm) -> None:
        """Remove the blocks with the lowest sums. Collective."""
        strips = _Strips(self, segments, comm)
        sums, unit = strips.sums()
        units = [
            strips.units_of(segment, each.double() * unit) for segment, each in zip(strips.segments, sums, strict=True)
        ]
        select_units(units, sparsity, scope, comm)
        strips.write_units(units)

    def select_threshold(self, segments: Sequence[ScoredSegment], threshold: float, comm: Comm) -> None:
        """Write keep = mean score of the block > threshold. Collective."""
        strips = _Strips(self, segments, comm)
        sums, unit = strips.sums()
        scale = unit * strips.magnitude / self.weights_per_unit
        strips.write([(each.double() * scale > threshold).to(torch.uint8) for each in sums])


class _Strips:
    """The strips that the segments of this rank touch, whole or in part. The owner of a strip holds its first element.

    # T strips of a segment, C blocks of a strip; (T, C) tensors have one entry per block
    """

    def __init__(self, block: Block, segments: Sequence[ScoredSegment], comm: Comm) -> None:
        refuse_nan(segments, comm)
        self.block, self.comm = block, comm
        self.segments = [segment for segment in segments if segment.numel]
        self.device = self.segments[0].scores.device if self.segments else torch.device("cpu")
        self.magnitude = self._magnitude()
        spans = gather_spans(segments, comm)
        parameters = shapes(spans)
        self.shared: dict[tuple[str, int], slice] = {}  # strips that no segment holds whole -> blocks, in one buffer
        self.num_shared = 0
        for name, strip in straddlers(spans, self.numel):
            begin, self.num_shared = self.num_shared, self.num_shared + self.blocks(parameters[name])
            self.shared[name, strip] = slice(begin, self.num_shared)

    def numel(self, shape: tuple[int, ...]) -> int:
        """Weights of a strip."""
        return self.block.rows * shape[-1]

    def blocks(self, shape: tuple[int, ...]) -> int:
        """Blocks of a strip."""
        return shape[-1] // self.block.cols

    def _magnitude(self) -> float:
        """The power of two at or above every finite |score| of all ranks. Collective."""
        highest = torch.zeros((), device=self.device)
        for segment in self.segments:
            for part in chunks(segment.scores):
                chunk = segment.scores[part]
                highest = torch.maximum(highest, chunk.abs().masked_fill(chunk.isinf(), 0).amax())
        return ldexp(1.0, frexp(float(self.comm.max(highest)))[1])

    def sums(self) -> tuple[list[Tensor], float]:
        """(T, C) int64 sums of the blocks of each segment, and their unit in magnitudes. Collective."""
        log_size = ceil(log2(self.block.weights_per_unit))
        bits = 61 - 2 * log_size
        infinite = 1 << bits + 1 + log_size
        factor = ldexp(1.0, bits) / self.magnitude

        def whole_numbers(scores: Tensor) -> Tensor:
            return (scores.double() * factor).round_().clamp_(-infinite, infinite).to(torch.int64)

        sums: list[Tensor] = []
        for segment in self.segments:
            shape = self._blocked(segment)
            out = torch.zeros(self._num_strips(segment), shape[1], dtype=torch.int64, device=self.device)
            for strips, part in self._whole(segment):
                out[strips] = whole_numbers(segment.scores[part]).view(-1, *shape).sum((1, 3))
            for strip, part, place in self._partial(segment):
                padded = torch.zeros(self.numel(segment.shape), dtype=torch.int64, device=self.device)
                padded[place] = whole_numbers(segment.scores[part])
                out[strip] = padded.view(shape).sum((0, 2))
            sums.append(out)
        self._merge(sums, torch.int64)
        return sums, ldexp(1.0, -bits)

    def units_of(
        self,
        segment: ScoredSegment,
        scores: Tensor,  # (T, C)
    ) -> ScoredSegment:
        """The blocks that the segment owns, as units to select."""
        shared_head = self._shared_head(segment)
        first = (segment.start // self.numel(segment.shape) + shared_head) * self.blocks(segment.shape)
        mine = scores[shared_head:].float().flatten()
        return ScoredSegment(
            segment.name, (self.block.num_units(segment.shape),), first, mine, torch.zeros_like(mine, dtype=torch.uint8)
        )

    def write_units(self, units: Sequence[ScoredSegment]) -> None:
        """Write the keep flags of owned blocks on every rank that holds some of their weights. Collective."""
        keep: list[Tensor] = []
        for segment, unit in zip(self.segments, units, strict=True):
            flags = unit.keep.new_zeros(self._num_strips(segment), self.blocks(segment.shape))
            flags[self._shared_head(segment) :] = unit.keep.view(-1, self.blocks(segment.shape))
            keep.append(flags)
        self._merge(keep, torch.uint8)
        self.write(keep)

    def write(
        self,
        keep: Sequence[Tensor],  # per segment (T, C) uint8
    ) -> None:
        """Write each block's flag to its weights on this rank."""
        for segment, flags in zip(self.segments, keep, strict=True):
            shape = self._blocked(segment)
            for strips, part in self._whole(segment):
                segment.keep[part].view(-1, *shape).copy_(flags[strips, None, :, None])
            for strip, part, place in self._partial(segment):
                segment.keep[part] = flags[strip, None, :, None].expand(shape).flatten()[place]

    def _merge(self, values: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Sum the strips that no segment holds whole over the segments that hold a piece, in place. Collective."""
        pieces = [
            (each[strip], self.shared[segment.name, segment.start // self.numel(segment.shape) + strip])
            for segment, each in zip(self.segments, values, strict=True)
            for strip, _, _ in self._partial(segment)
        ]
        total = torch.zeros(self.num_shared, dtype=dtype, device=self.device)
        for piece, place in pieces:
            total[place] += piece
        total = self.comm.sum(total)
        for piece, place in pieces:
            piece.copy_(total[place])

    def _blocked(self, segment: ScoredSegment) -> tuple[int, int, int]:
        """A strip's shape: (rows, C, cols)."""
        return self.block.rows, self.blocks(segment.shape), self.block.cols

    def _num_strips(self, segment: ScoredSegment) -> int:
        """T."""
        width = self.numel(segment.shape)
        return (segment.start + segment.numel - 1) // width - segment.start // width + 1

    def _shared_head(self, segment: ScoredSegment) -> int:
        """1 if the segment's first strip begins before it, and so is not its own; else 0."""
        return int(segment.start % self.numel(segment.shape) > 0)

    def _whole(self, segment: ScoredSegment) -> Iterator[tuple[slice, slice]]:
        """(strips, their elements in the segment) of the whole strips, a chunk at a time."""
        width = self.numel(segment.shape)
        begin, end = (edge - segment.start for edge in whole_groups(segment.start, segment.numel, width))
        step = max(1, chunk_numel(segment.scores) // width) * width
        for a in range(begin, end, step):
            b = min(a + step, end)
            strip = (segment.start + a) // width - segment.start // width
            yield slice(strip, strip + (b - a) // width), slice(a, b)

    def _partial(self, segment: ScoredSegment) -> Iterator[tuple[int, slice, slice]]:
        """(strip, its elements in the segment, their place in the strip) of the strips that it holds a piece of."""
        width = self.numel(segment.shape)
        for a, b in partial_groups(segment.start, segment.numel, width):
            strip = a // width - segment.start // width
            yield strip, slice(a - segment.start, b - segment.start), slice(a % width, a % width + b - a)
