"""Selections that need whole matrices: within each output, and to a target within one matrix.

Matrices are assembled from the shards of all ranks, one at a time; the choice is written back into the shards.

# o outputs and i inputs of a linear map, r its number of weights
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pat.common.comm import LOCAL
from pat.common.rounding import part_of
from pat.common.typed import split
from pat.models import experts
from pat.pruning.criteria import CHOICE
from pat.pruning.scopes import Scope
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.types import Granularity, ScoredSegment
from pat.pruning.weights.selection import refuse_nan
from pat.pruning.weights.shard_state import MaskedShard
from pat.zero.layouts import Piece, Segment, ZeroLayout, copy_common


def chooser(name: str, granularity: Granularity, sparsity: float, scope: Scope) -> Callable[[Tensor], Tensor]:
    """Scores (o, i), or (e, o, i) of e in one, -> bool flags of that shape, exactly to the target in one matrix."""

    def choose(scores: Tensor) -> Tensor:
        if scope.of_rows and granularity.single:
            rows = scores.reshape(-1, scores.shape[-1])  # of a stack of matrices, the rows of all
            return keep_top_of_rows(rows, rows.shape[1] - part_of(rows.shape[1], sparsity)).view_as(scores)
        if granularity.single and scores.numel() < SMALL:
            return keep_top_of_rows(scores.reshape(1, -1), scores.numel() - part_of(scores.numel(), sparsity)).view_as(
                scores
            )
        flags = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
        flat = scores.float().contiguous().view(-1)
        whole = ScoredSegment(name, tuple(scores.shape), 0, flat, flags.view(torch.uint8))
        granularity.select([whole], sparsity, Matrix(), LOCAL)
        return flags.view_as(scores)

    return choose


SMALL = 1 << 19  # scores that are sorted faster than counted


def keep_top_of_rows(scores: Tensor, num_keep: int) -> Tensor:
    """(o, i) bool: the highest of every row; of equal scores the lower index. About CHOICE scores at a time."""
    if num_keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    parts = split(scores, max(1, CHOICE // scores.shape[1]))
    return torch.cat([_keep_top(part, num_keep) for part in parts]) if len(parts) > 1 else _keep_top(scores, num_keep)


def _keep_top(scores: Tensor, num_keep: int) -> Tensor:
    last = scores.kthvalue(scores.shape[1] - num_keep + 1, dim=1, keepdim=True).values
    keep = scores >= last
    tied = (keep.sum(1) > num_keep).nonzero().squeeze(1)  # rows in which only some of those equal to the last may stay
    if len(tied):
        above, equal = scores[tied] > last[tied], scores[tied] == last[tied]
        room = num_keep - above.sum(1, keepdim=True)
        keep[tied] = above | (equal & (equal.cumsum(1) <= room))
    return keep


class WholeMatrices:
    """The matrices of a pruner, assembled from the shards of all ranks one at a time, and written back."""

    def __init__(
        self,
        layout: ZeroLayout,
        states: Sequence[MaskedShard],
        shapes: Mapping[str, tuple[int, ...]],  # as stored
        transposed: Collection[str] = (),  # those stored as (i, o)
    ) -> None:
        self.layout, self.states, self.shapes, self.transposed = layout, states, shapes, transposed

    def maps(self, names: Collection[str]) -> list[str]:
        """The linear maps in these parameters: a matrix itself, or that of each expert, see `pat.models.experts`."""
        return [each for name in names for each in experts.maps(name, self.shapes[name])]

    def weights(self, name: str) -> Tensor:
        """The effective weights of a linear map, (o, i) fp32. Collective."""
        owner, run = self._place(name)
        return self.turned(owner, self.layout.part(owner, run).view(self.shapes[owner][-2:]))

    def turned(self, name: str, matrix: Tensor) -> Tensor:
        """Between the stored orientation and outputs first, either way."""
        return matrix.transpose(-2, -1) if experts.parameter_of(name) in self.transposed else matrix

    def select_in_rows(
        self, scored: Sequence[ScoredSegment], granularity: Granularity, sparsity: float, scope: Scope
    ) -> None:
        """Keep the highest of every row. Raises ValueError for scores that are NaN. Collective."""
        by_name: dict[str, list[Piece]] = {name: [] for name in self.shapes}
        for segment in scored if not self.layout.replicated or self.layout.world.rank == 0 else ():
            by_name[segment.name].append(Piece(segment.start, segment.scores))
        refuse_nan(scored, self.layout.comm)
        for name, pieces in by_name.items():
            scores = self.turned(name, self.layout.assemble(name, pieces, torch.float32).view(self.shapes[name]))
            self.mark(name, self.turned(name, chooser(name, granularity, sparsity, scope)(scores)))

    def mark(self, name: str, flags: Tensor) -> None:
        """Write this rank's part of a parameter's flags, or of a linear map's, given all of them as stored."""
        (owner, run), flat = self._place(name), flags.reshape(-1)
        for state, s in self._segments(owner):
            assert state.keep is not None
            copy_common(flat, run.start, state.keep[s.part], s.start)

    def fit(self, name: str, values: Tensor) -> None:
        """Write this rank's part of a parameter's weights, or of a linear map's, given all of them as stored."""
        (owner, run), flat = self._place(name), values.reshape(-1)
        self.layout.write(owner, flat, run.start)
        for state, s in self._segments(owner):
            assert state.dense is not None
            copy_common(flat, run.start, state.dense[s.part], s.start)

    def _place(self, name: str) -> tuple[str, range]:
        """The parameter that holds a linear map, or is it, and the run of its elements."""
        owner, expert = experts.parameter_of(name), experts.expert_of(name)
        shape = self.shapes[owner]
        size = math.prod(shape if expert is None else shape[1:])
        first = (expert or 0) * size
        return owner, range(first, first + size)

    def _segments(self, name: str) -> Iterator[tuple[MaskedShard, Segment]]:
        return ((state, s) for state in self.states for s in state.shard.segments if s.name == name)
