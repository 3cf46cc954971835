"""The few nouns that selection, masks, shards and checkpoints share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class PromiseBroken(RuntimeError):
    """Something pat guarantees does not hold: a target missed, a pruned weight that is not zero."""


@dataclass(frozen=True)
class ScoredSegment:
    """The scores of a contiguous run of one parameter's units, and the flags to write; each unit is in one of them.

    The units are single weights, or blocks (then `shape` and `start` count blocks).
    """

    name: str
    shape: tuple[int, ...]
    start: int  # first unit: row-major index in the parameter
    scores: Tensor  # (n,) fp32, a view
    keep: Tensor  # (n,) uint8, a view: written by the selection, 1 = the weight survives

    @property
    def numel(self) -> int:
        """Elements in the segment."""
        return self.scores.numel()
