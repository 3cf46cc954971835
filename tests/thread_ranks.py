"""Ranks as threads: dozens of cuts and rank counts in seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.pruning.types import ScoredSegment

TIMEOUT_S = 30.0


@dataclass
class Board:
    """Where the threads of one run meet."""

    barrier: threading.Barrier
    items: list[Any] = field(default_factory=list)
    calls: int = 0


@dataclass(frozen=True)
class ThreadComm(Comm):
    """The collectives of `Comm`, between threads. A rank that leaves early breaks the barrier of the others."""

    board: Board = field(kw_only=True)

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather(tensor)).sum(0).to(tensor.dtype)

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(self.sum(tensor.clone()))  # another thread may still read what was given

    def max(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather(tensor)).amax(0)

    def sum_on(self, owner: int, tensor: Tensor) -> Tensor:
        summed = self.sum(tensor)
        return summed if self.rank == owner else torch.full_like(summed, torch.nan)

    def broadcast(self, owner: int, tensor: Tensor) -> Tensor:
        return self.gather(tensor)[owner].clone()

    def gather(self, item: Any) -> list[Any]:
        self.board.items[self.rank] = item
        self.board.barrier.wait(TIMEOUT_S)
        items = list(self.board.items)
        self.board.calls += self.rank == 0
        self.board.barrier.wait(TIMEOUT_S)
        if isinstance(item, Tensor):
            assert {(t.shape, t.dtype) for t in items} == {(item.shape, item.dtype)}, "ranks reduce different things"
        return items


def run_ranks(world_size: int, work: Callable[[Comm], Any]) -> tuple[list[Any], int]:
    """(what `work` returned or raised on each rank, number of collectives)."""
    board = Board(threading.Barrier(world_size), [None] * world_size)
    results: list[Any] = [None] * world_size

    def rank(r: int) -> None:
        try:
            results[r] = work(ThreadComm(r, world_size, board=board))
        except Exception as error:  # every rank's own error is the result under test
            results[r] = error
            if not isinstance(error, ValueError):
                board.barrier.abort()

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, board.calls


def cut(
    parameters: dict[str, Tensor],
    keep: dict[str, Tensor],
    world_size: int,
    rng: np.random.Generator,
    pieces: int = 4,
    empty: Sequence[int] = (),  # ranks that hold nothing
) -> list[list[ScoredSegment]]:
    """Each rank's segments: every parameter cut at random elements, the pieces dealt to random ranks, in any order."""
    ranks = [r for r in range(world_size) if r not in empty]
    segments: list[list[ScoredSegment]] = [[] for _ in range(world_size)]
    for name, scores in parameters.items():
        n = scores.numel()
        edges = np.unique(np.concatenate([[0, n], rng.integers(0, n + 1, rng.integers(0, pieces + 1))]))
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            flat, flags = scores.view(-1)[a:b], keep[name].view(-1)[a:b]
            segments[rng.choice(ranks)].append(ScoredSegment(name, tuple(scores.shape), a, flat, flags))
    for mine in segments:
        rng.shuffle(mine)  # type: ignore[arg-type]
    return segments


def select_on(
    world_size: int,
    parameters: dict[str, Tensor],
    select: Callable[[list[ScoredSegment], Comm], None],
    seed: int = 0,
    **how: Any,
) -> dict[str, np.ndarray]:
    """The flags that `select` writes on `world_size` ranks. Raises the error that all ranks raise."""
    keep = {name: torch.full(s.shape, 7, dtype=torch.uint8) for name, s in parameters.items()}
    segments = cut(parameters, keep, world_size, np.random.default_rng(seed), **how)
    results, _ = run_ranks(world_size, lambda comm: select(segments[comm.rank], comm))
    if results[0] is not None:
        assert all(type(r) is type(results[0]) and str(r) == str(results[0]) for r in results), results
        raise results[0]
    assert results == [None] * world_size
    return {name: flags.numpy() for name, flags in keep.items()}


def oracle(parameters: dict[str, Tensor], num_keep: int) -> dict[str, np.ndarray]:
    """One stable sort of everything, parameters in name order."""
    names = sorted(parameters)
    flat = np.concatenate([parameters[name].numpy().ravel() for name in names])
    keep = np.zeros(len(flat), np.uint8)
    keep[np.argsort(-flat, kind="stable")[:num_keep]] = 1
    parts = np.split(keep, np.cumsum([parameters[name].numel() for name in names])[:-1])
    return {name: part.reshape(parameters[name].shape) for name, part in zip(names, parts, strict=True)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same flags for every parameter."""
    assert found.keys() == expected.keys()
    for name, flags in expected.items():
        assert np.array_equal(found[name], flags), name
