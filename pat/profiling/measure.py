"""Gives all models the plan's work, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pat.profiling.plan import Plan, Work

Runs = Callable[[Work], list[float]]  # seconds: [prompt done, first token, ...]
Numbers = NDArray[np.float64]


@dataclass
class Samples:
    """What one model took, block by block; the k-th block is the same work for every model."""

    works: list[Work] = field(default_factory=list)
    laps: list[list[list[float]]] = field(default_factory=list)  # [block][round][lap], seconds

    def add(self, work: Work, rounds: list[list[float]]) -> None:
        """Append a block: rounds [round][lap] in seconds, as `Runner` gives the laps."""
        self.works.append(work)
        self.laps.append(rounds)

    def requests(self, requests: Sequence[Work]) -> list[int]:
        """The blocks of single requests."""
        wanted = set(requests)
        return [k for k, work in enumerate(self.works) if work in wanted]

    def whole(self, blocks: Sequence[int]) -> Numbers:
        """(n, 2) seconds until the last token."""
        return np.array([[laps[-1] for laps in self.laps[k]] for k in blocks])

    def first(self, blocks: Sequence[int]) -> Numbers:
        """(n, 2) seconds until the first token is known."""
        return np.array([[laps[1] for laps in self.laps[k]] for k in blocks])

    def prompt(self, blocks: Sequence[int]) -> Numbers:
        """(n, 2) seconds of the forward of the prompt."""
        return np.array([[laps[0] for laps in self.laps[k]] for k in blocks])

    def decode(self, blocks: Sequence[int]) -> Numbers:
        """(tokens,) seconds of each token after the first, of all rounds."""
        return np.array([gap for k in blocks for laps in self.laps[k] for gap in np.diff(laps[1:])])

    def decode_means(self, blocks: Sequence[int]) -> Numbers:
        """(n, 2) mean seconds of a token after the first."""
        return np.array([[(laps[-1] - laps[1]) / (len(laps) - 2) for laps in self.laps[k]] for k in blocks])


def measure(
    plan: Plan,
    models: Sequence[Runs],
    seed: int,
    warm_up: int,
    advance: Callable[[int], None] = lambda count: None,  # called with the number of finished calls
) -> list[Samples]:
    """The times of every model: all the work `warm_up` times, which does not count, then the plan's blocks."""
    for _ in range(warm_up):
        for work in plan.distinct:
            for run in models:
                run(work)
                advance(1)
    samples = [Samples() for _ in models]
    for block in plan.blocks(len(models), seed):
        found: list[list[list[float]]] = [[] for _ in models]
        for order in block.rounds:
            for i in order:
                found[i].append(models[i](block.work))
                advance(1)
        for sample, rounds in zip(samples, found, strict=True):
            sample.add(block.work, rounds)
    return samples


def calls(plan: Plan, models: int, warm_up: int) -> int:
    """How many `measure` makes."""
    return models * (warm_up * len(plan.distinct) + 2 * (len(plan.requests) + len(plan.grid_only) * plan.grid_blocks))
