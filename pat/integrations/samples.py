"""Samples that a pruner is calibrated on, from somebody else's trainer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from pat.common.comm import Comm

Batch = Mapping[str, Any]  # as the model takes it: input_ids (B, T), attention_mask, ...


class Kept:
    """Batches of which only those are drawn that somebody reads; who reads again gets the same ones."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.rest, self.drawn = iter(batches), list[Batch]()

    def __iter__(self) -> Iterator[Batch]:
        """From the first one on."""
        place = 0
        while True:
            if place == len(self.drawn):
                try:
                    self.drawn.append(next(self.rest))
                except StopIteration:
                    return
            yield self.drawn[place]
            place += 1


def taken(batches: Iterable[Batch], number: int, world: Comm) -> list[dict[str, Any]]:
    """This rank's first batches with its share of `number` samples, on its device. ValueError on all ranks where one of
    them has too few, or ranks have different numbers of batches. Collective."""
    share, found, rows = math.ceil(number / world.world_size), list[dict[str, Any]](), 0
    for batch in batches:
        if rows >= share:
            break
        if not (isinstance(batch, Mapping) and "input_ids" in batch):
            raise ValueError(
                f"`samples` has a {type(batch).__name__}, but a batch is what the model takes: a mapping with input_ids"
            )
        found.append({key: v.to(world.device) if torch.is_tensor(v) else v for key, v in batch.items()})
        rows += len(batch["input_ids"])
    everywhere = world.gather((rows, len(found)))
    fewest = min(count for count, _ in everywhere)
    if fewest < share:
        raise ValueError(
            f"the pruner is calibrated on {number:,} samples, {share:,} of each rank, but a rank has {fewest:,}: give "
            "more `samples`, or lower num_samples of the criterion or gate"
        )
    if len({batches for _, batches in everywhere}) > 1:
        raise ValueError("ranks have different numbers of batches in `samples`: give batches of one size")
    return found


class RowsOf:
    """A loader's data set from its first row on, as its batches are collated, the rows shared out among the ranks. The
    loader itself, its sampler and torch's random numbers stay as they are."""

    def __init__(self, loader: Any, size: int, rank: int, world_size: int) -> None:
        self.rows, self.collate, self.size = loader.dataset, loader.collate_fn, size
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        """Every time from the first row. ValueError for a data set whose rows have no numbers."""
        if not (hasattr(self.rows, "__getitem__") and hasattr(self.rows, "__len__")):
            raise ValueError(
                "the pruner is calibrated on samples, and the training data is a stream: give PruningCallback "
                "`samples`, some batches of this rank"
            )
        own = range(self.rank, len(self.rows), self.world_size)
        for start in range(0, len(own), self.size):
            with torch.random.fork_rng(devices=[]):  # collators may draw
                batch = self.collate([self.rows[i] for i in own[start : start + self.size]])
            yield batch
