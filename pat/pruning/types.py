"""The few nouns that selection, masks, shards and checkpoints share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class PromiseBroken(RuntimeError):
    """Something pat guarantees does not hold: a target missed, a pruned weight that is not zero."""


@dataclass(frozen=True)
class Run:
    """One segment's scores and the keep flags to write; no two ranks hold the same element."""

    name: str
    shape: tuple[int, ...]
    start: int
    scores: Tensor  # (n,) fp32, a view
    keep: Tensor  # (n,) uint8, a view: written by the selection, 1 = the weight survives

    @property
    def numel(self) -> int:
        """Elements in the run."""
        return self.scores.numel()
