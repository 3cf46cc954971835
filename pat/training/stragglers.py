"""Which rank is slow: each rank's own compute time, without its waiting for others.

In a step every rank waits for the slowest, so all steps take equally long. What differs is the forward of the leaf
modules: no collective runs inside them (at ZeRO 3 a weight is gathered before its module begins). It is timed in the
one step of every window that is logged, with events on a GPU and with the clock on a CPU; nothing is read back before.

# N ranks
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

SLOW = 1.5  # times the median, in
WINDOWS = 3  # windows in a row: one may be chance


class Pace:
    """Times the leaf modules of a model while a step is watched."""

    def __init__(self, model: nn.Module) -> None:
        self.leaves = [m for m in model.modules() if not any(m.children()) and any(True for _ in m.parameters(False))]
        self.cuda = torch.cuda.is_available()
        self.hooks: list[Any] = []
        self.open: dict[int, Any] = {}  # by module: when its forward began
        self.pairs: list[tuple[Any, Any]] = []  # (begin, end) of each forward

    def start(self) -> None:
        """Watch from here on. DeepSpeed's hooks were there before these: they run before the mark."""
        self.stop()
        for leaf in self.leaves:
            self.hooks += [leaf.register_forward_pre_hook(self._begin), leaf.register_forward_hook(self._end)]

    def _begin(self, module: nn.Module, *_: Any) -> None:
        if module.training:  # not in an evaluation
            self.open[id(module)] = self._now()

    def _end(self, module: nn.Module, *_: Any) -> None:
        begun = self.open.pop(id(module), None)  # activation checkpointing may leave a module it computes again
        if begun is not None:
            self.pairs.append((begun, self._now()))

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> float:
        """Seconds since `start` within the modules; waits for them on a GPU."""
        for hook in self.hooks:
            hook.remove()
        pairs, self.hooks, self.pairs, self.open = self.pairs, [], [], {}
        if self.cuda and pairs:
            pairs[-1][1].synchronize()
            return sum(a.elapsed_time(b) for a, b in pairs) / 1e3
        return sum(b - a for a, b in pairs)


class SlowRanks:
    """Finds a rank that is much slower than the median in several windows in a row, and names it once."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts
        self.in_a_row = [0] * len(hosts)
        self.named: set[int] = set()

    def seen(self, seconds: Sequence[float]) -> list[str]:
        """A sentence for each rank that is found to be slow. `seconds`: (N,) own compute of one step."""
        median = statistics.median(seconds)
        said = []
        for rank, own in enumerate(seconds):
            self.in_a_row[rank] = self.in_a_row[rank] + 1 if own > SLOW * median > 0 else 0
            if self.in_a_row[rank] >= WINDOWS and rank not in self.named:
                self.named.add(rank)
                said.append(
                    f"rank {rank} on {self.hosts[rank]} is slow, and the others wait for it: its forward computes for "
                    f"{own:.3g} s, {own / median:.1f} times the median; look for other work, heat or a fault there"
                )
        return said
