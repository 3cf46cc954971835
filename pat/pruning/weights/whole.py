"""Selections that need whole matrices: within each output, and by criteria that look at a matrix's inputs.

A matrix is brought together from the shards of all ranks, one at a time; what is chosen goes back into the shards.

# o outputs and i inputs of a linear map, r its number of weights
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pat.common.comm import LOCAL
from pat.common.rounding import part_of
from pat.pruning.calibration.needs import too_large
from pat.pruning.calibration.walk import Layer
from pat.pruning.criteria import Calibrated
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.selection import refuse_nan
from pat.pruning.weights.shard_state import MaskedShard
from pat.zero.layouts import Piece, Segment, ZeroLayout

Cut = tuple[Tensor, Tensor]  # flags (o, i) uint8, weights (o, i) fp32


def chooser(name: str, granularity: Any, sparsity: float, scope: str) -> Callable[[Tensor], Tensor]:
    """Scores (o, i) -> flags (o, i) bool, exactly to the target within one matrix."""

    def choose(scores: Tensor) -> Tensor:
        if granularity.name == "weight":  # of every row, or of all as one
            rows = scores if scope == "row" else scores.reshape(1, -1)
            kept = rows.shape[1] - part_of(rows.shape[1], sparsity)
            return keep_top_of_rows(rows, kept).view_as(scores)
        flags = torch.ones(scores.numel(), dtype=torch.uint8, device=scores.device)
        whole = ScoredSegment(name, tuple(scores.shape), 0, scores.float().contiguous().view(-1), flags)
        granularity.select([whole], sparsity, "matrix", LOCAL)
        return flags.view_as(scores).bool()

    return choose


def keep_top_of_rows(scores: Tensor, num_keep: int) -> Tensor:
    """(o, i) bool: the highest of every row; of equal scores the lower index."""
    if num_keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    last = scores.kthvalue(scores.shape[1] - num_keep + 1, dim=1, keepdim=True).values
    above, equal = scores > last, scores == last
    room = num_keep - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))


class WholeMatrices:
    """The matrices of a pruner, brought together from the shards of all ranks one at a time, and written back."""

    def __init__(
        self,
        layout: ZeroLayout,
        states: Sequence[MaskedShard],
        shapes: Mapping[str, tuple[int, ...]],  # as stored
        transposed: Collection[str] = (),  # those stored as (i, o)
    ) -> None:
        self.layout, self.states, self.shapes, self.transposed = layout, states, shapes, transposed

    def weights(self, name: str) -> Tensor:
        """The effective weights of a matrix, (o, i) fp32. Collective."""
        return self._turned(name, self.layout.whole(name))

    def _turned(self, name: str, matrix: Tensor) -> Tensor:
        """From as it is stored to outputs first, or back."""
        return matrix.T if name in self.transposed else matrix

    def select_in_rows(self, scored: Sequence[ScoredSegment], granularity: Any, sparsity: float) -> None:
        """Keep the highest of every row. Raises ValueError for scores that are NaN. Collective."""
        by_name: dict[str, list[Piece]] = {name: [] for name in self.shapes}
        for segment in scored if not self.layout.replicated or self.layout.world.rank == 0 else ():
            by_name[segment.name].append(Piece(segment.start, segment.scores))
        refuse_nan(scored, self.layout.comm)
        for name, pieces in by_name.items():
            scores = self._turned(name, self.layout.assemble(name, pieces, torch.float32).view(self.shapes[name]))
            self.write(name, chooser(name, granularity, sparsity, "row")(scores))

    def write(self, name: str, flags: Tensor, values: Tensor | None = None) -> None:
        """This rank's part of a matrix's flags (o, i), and of its weights (o, i) where they change."""
        flags = self._turned(name, flags).reshape(-1)
        for state, s in self._segments(name):
            assert state.keep is not None
            state.keep[s.part].copy_(flags[s.start : s.start + s.numel])
        if values is not None:
            self.fit(name, self._turned(name, values))

    def fit(self, name: str, values: Tensor) -> None:
        """This rank's part of a matrix's weights, which come as they are stored."""
        self.layout.write(name, values)
        for state, s in self._segments(name):
            assert state.dense is not None
            state.dense[s.part].copy_(state.shard.view[s.part])

    def _segments(self, name: str) -> Iterator[tuple[MaskedShard, Segment]]:
        return ((state, s) for state in self.states for s in state.shard.segments if s.name == name)


def cut_layer(
    layer: Layer,
    names: Sequence[str],  # matrices of the layer
    criterion: Calibrated,
    granularity: Any,
    sparsity: float,
    scope: str,
    weights: Callable[[str], Tensor],  # name -> (o, i) fp32 effective weight, whole. Collective
) -> Iterable[tuple[str, Cut]]:
    """The cut of every matrix of a layer. Each is computed by one rank, and the others get it. Collective."""
    comm = layer.walk.comm
    inputs = layer.collect({name: criterion.statistics for name in names})
    mine: dict[str, Cut | str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for place, name in enumerate(names):
        dense = weights(name)
        shapes[name] = tuple(dense.shape)
        if place % comm.world_size == comm.rank:
            mine[name] = _cut(name, criterion, granularity, sparsity, scope, dense, inputs[name])
    refused = [said for each in comm.gather([v for v in mine.values() if isinstance(v, str)]) for said in each]
    if refused:
        raise ValueError(refused[0])
    for name in names:
        flags, values = mine.pop(name, None) or (
            torch.zeros(shapes[name], dtype=torch.uint8, device=comm.device),
            torch.zeros(shapes[name], device=comm.device),
        )
        assert not isinstance(flags, str) and not isinstance(values, str)
        yield name, (comm.sum(flags), comm.sum(values))


def _cut(
    name: str,
    criterion: Calibrated,
    granularity: Any,
    sparsity: float,
    scope: str,
    dense: Tensor,
    inputs: Mapping[Any, Tensor],
) -> Cut | str:
    """The cut, or why there is none: the other ranks wait, so an error is told and not raised."""
    try:
        keep, weights = criterion.cut(dense, inputs, chooser(name, granularity, sparsity, scope))
    except (MemoryError, torch.OutOfMemoryError):
        return too_large(name, criterion.name, criterion.cut_bytes(*dense.shape))
    except (ValueError, RuntimeError) as error:  # torch's errors of linear algebra are RuntimeErrors
        return f"{name} cannot be pruned by {criterion.name}: {error}"
    if not bool(torch.isfinite(weights).all()):
        return f"{name}: {criterion.name} gives weights that are not finite; raise its damping, or take more samples"
    return keep.to(torch.uint8).contiguous(), weights.float().contiguous()
