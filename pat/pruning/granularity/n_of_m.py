"""N:M: at most n weights survive of every m neighbours along the input dimension (2:4 for sparse tensor cores)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import ClassVar

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.pruning.scopes import Scope
from pat.pruning.types import Granularity, ScoredSegment
from pat.pruning.weights.arrays import chunk_numel
from pat.pruning.weights.selection import refuse_nan
from pat.pruning.weights.spans import gather_spans, partial_groups, straddlers, whole_groups

ROUNDING = 1e-4  # of a slot: sparsity 1 - n/m is meant exactly, whatever the last of its six digits


@dataclass(frozen=True, kw_only=True)
class NOfM(Granularity):
    """At sparsity s, max(n, ceil((1 - s) m)) of every m weights survive; of equal scores the lower index.

    A group is m consecutive elements of the last dimension of a weight (out, in). The scope makes no difference.
    Source: Zhou et al. 2021, arXiv:2102.04010.
    """

    name: str = "n_of_m"
    n: int  # how many weights of each group stay
    m: int  # size of a group: neighbours along the inputs

    oriented: ClassVar[bool] = True
    competing: ClassVar[bool] = False
    faster_where: ClassVar[str] = "has kernels for the pattern"

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"n_of_m needs 1 <= n < m, not n={self.n}, m={self.m}; for example n=2, m=4.")

    def describe(self, scope: Scope) -> str:
        """The pattern: the scope makes no difference."""
        return f"{self.n} of every {self.m} stay"

    def validate(self, name: str, shape: tuple[int, ...]) -> None:
        """The input dimension must be a multiple of m."""
        if shape[-1] % self.m:
            raise ValueError(
                f"n_of_m: the input dimension {shape[-1]} of {name} is not a multiple of m={self.m}; "
                "exclude it or choose another m."
            )

    def validate_target(self, sparsity: float) -> None:
        """Whole slots of every group, so a multiple of 1/m up to 1 - n/m."""
        most = self.m - self.n
        if abs(sparsity * self.m - round(sparsity * self.m)) > ROUNDING or round(sparsity * self.m) > most:
            allowed = ", ".join(f"{slots / self.m:g}" for slots in range(most + 1))
            raise ValueError(
                f"{self.n}:{self.m} can remove {allowed} of the weights, not {sparsity:g}; change the budget."
            )

    def reachable(self, sparsity: float) -> float:
        """Whole slots of every group: the next lower multiple of 1/m."""
        return (self.m - self.num_kept(sparsity)) / self.m

    def num_kept(self, sparsity: float) -> int:
        """Survivors of each group at sparsity s: max(n, ceil((1 - s) m))."""
        return max(self.n, ceil((1 - sparsity) * self.m - ROUNDING))

    def pruned_units(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float, scope: Scope) -> int:
        """Weights that this target removes: m - num_kept(s) of every group, whatever the scope."""
        return sum(map(prod, shapes.values())) // self.m * (self.m - self.num_kept(sparsity))

    def select(self, segments: Sequence[ScoredSegment], sparsity: float, scope: Scope, comm: Comm) -> None:
        """Keep the highest of every group; groups that ranks share are completed by one small sum. Collective."""
        refuse_nan(segments, comm)
        k, m = self.num_kept(sparsity), self.m
        slots = {key: i for i, key in enumerate(straddlers(gather_spans(segments, comm), lambda _: m))}
        shared = torch.zeros(len(slots), m, device=segments[0].scores.device if segments else None)
        pieces = [
            (s, slice(a - s.start, b - s.start), slots[s.name, a // m], slice(a % m, a % m + b - a))
            for s in segments
            for a, b in partial_groups(s.start, s.numel, m)
        ]
        for segment, mine, slot, place in pieces:
            shared[slot, place] = segment.scores[mine]
        keep_shared = torch.empty_like(shared, dtype=torch.uint8)
        _keep_highest(comm.sum(shared), k, keep_shared)
        for segment, mine, slot, place in pieces:
            segment.keep[mine] = keep_shared[slot, place]
        for segment in segments:
            a, b = (edge - segment.start for edge in whole_groups(segment.start, segment.numel, m))
            _keep_highest(segment.scores[a:b].view(-1, m), k, segment.keep[a:b].view(-1, m))

    def select_threshold(self, segments: Sequence[ScoredSegment], threshold: float, comm: Comm) -> None:
        """A threshold keeps no fixed number of a group."""
        raise ValueError(
            "n_of_m cannot select by a threshold; choose a criterion without one (movement, magnitude, taylor)."
        )


def _keep_highest(
    scores: Tensor,  # (groups, m)
    k: int,
    out: Tensor,  # (groups, m) uint8
) -> None:
    """Keep those that fewer than k others of the group beat; a lower index beats an equal score."""
    m = scores.shape[1]
    step = max(1, chunk_numel(scores.view(-1)) // m)
    for part in range(0, len(scores), step):
        x = scores[part : part + step].t().contiguous()  # (m, groups): one vector operation a pair of slots
        beaten = torch.arange(m - 1, -1, -1, dtype=x.dtype, device=x.device)[:, None].repeat(1, x.shape[1])
        lower = torch.empty_like(x[0])
        for i in range(m):
            for j in range(i + 1, m):
                torch.ge(x[i], x[j], out=lower)  # 1: slot i beats slot j; j was counted as beating i
                beaten[j] += lower
                beaten[i] -= lower
        out[part : part + step] = (beaten < k).t()
