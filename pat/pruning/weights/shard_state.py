"""What one weight pruner keeps beside one of this rank's optimizer shards; it is saved by parameter, never by rank.

# n elements of a shard
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pat.common.hashing import pack_keep
from pat.common.typed import of_numpy
from pat.pruning import state_keys
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.arrays import array, module
from pat.zero.layouts import Piece, Segment, Shard, ZeroLayout


@dataclass
class MaskedShard:
    """The state of one pruner on one shard; what a phase does not need is None."""

    shard: Shard
    keep: Tensor | None = None  # (n,) uint8
    score: Tensor | None = None  # (n,) fp32
    dense: Tensor | None = None  # (n,) fp32, soft phase only: the shard itself then holds dense * keep
    buffer: Tensor | None = None  # DeepSpeed's own storage of the shard, while the optimizer steps the dense one

    def enter_soft(self) -> None:
        """All flags up; the dense weights move out of DeepSpeed's buffer."""
        self.keep = torch.ones_like(self.shard.view, dtype=torch.uint8)
        self.dense = self.shard.view.clone()

    def enter_hard(self) -> None:
        """Let the dense weights and the scores go; only the flags stay."""
        self.dense = self.score = None

    def scored(self, segment: Segment, values: Tensor) -> ScoredSegment:
        """A segment's scores and its place in the keep flags."""
        assert self.keep is not None
        return ScoredSegment(segment.name, segment.shape, segment.start, values, self.keep[segment.part])

    def keep_pieces(self, name: str) -> Iterator[Piece]:
        """The flags of a parameter that are here; before the soft phase all are up."""
        for s in self.shard.segments:
            if s.name == name:
                flags = torch.ones(s.numel, dtype=torch.uint8) if self.keep is None else self.keep[s.part]
                yield Piece(s.start, flags)

    def removed(self) -> Iterator[tuple[str, int]]:
        """(parameter, weights whose flag is down) of every segment."""
        for s in self.shard.segments if self.keep is not None else ():
            assert self.keep is not None
            keep = self.keep[s.part]
            yield s.name, s.numel - int(module(keep).count_nonzero(array(keep.view(torch.bool))))

    def revived(self, layout: ZeroLayout) -> int:
        """Weights whose flag is down but that are not zero, in the fp32 shard and in the forward copy."""
        assert self.keep is not None
        count = 0
        for s in self.shard.segments:
            dead = 1 - self.keep[s.part]
            for weights in (self.shard.view[s.part], layout.forward_segment(s)):
                count += int(torch.count_nonzero(weights * dead.to(weights.device)))
        return count

    def state_bytes(self) -> int:
        """Bytes that pruning holds beside this shard."""
        return sum(t.numel() * t.element_size() for t in (self.keep, self.score, self.dense) if t is not None)

    def tensors(self, pruner: str) -> dict[str, Tensor]:
        """What is saved, flags packed, by its key."""
        saved: dict[str, Tensor] = {}
        for s in self.shard.segments:
            if self.keep is not None:
                packed = np.asarray(pack_keep(self.keep[s.part]))
                saved[state_keys.of_mask(pruner, state_keys.KEEP, s.name, s.start)] = of_numpy(packed.copy())
            for kind, value in ((state_keys.SCORE, self.score), (state_keys.DENSE, self.dense)):
                if value is not None:
                    saved[state_keys.of_mask(pruner, kind, s.name, s.start)] = value[s.part].detach().cpu().contiguous()
        return saved

    def load(self, read: Callable[[str, Segment], Tensor]) -> None:
        """Fill what this phase has from `read(kind, segment)`."""
        for s in self.shard.segments:
            for kind, value in zip(state_keys.KINDS, (self.keep, self.score, self.dense), strict=True):
                if value is not None:
                    value[s.part].copy_(read(kind, s))
