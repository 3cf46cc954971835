"""The network of an allocation: the rate of an all-reduce over each link, and the skew of the clocks.

# n ranks of a group, B bytes of a tensor, t seconds of an all-reduce
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from pat.doctor import MIND, WELL, Finding
from pat.run.directory import HOST

NUMEL = 1 << 24  # fp32 numbers that are reduced: 64 MiB
REPEATS = 3
PINGS = 20
ALL_PAIRS = 8  # nodes; of more, only neighbours are measured
SLOW_LINK = 0.5  # of the median of the links between nodes
SKEW_S = 0.1  # from here on, logs of two nodes cannot be compared by time


def node() -> str:
    """The name of this node."""
    return os.environ.get("SLURMD_NODENAME") or HOST


def nodes() -> dict[str, list[int]]:
    """The ranks of every node. Collective."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, node())
    found: dict[str, list[int]] = {}
    for rank, name in enumerate(every):
        found.setdefault(name, []).append(rank)
    return found


def links(by_node: dict[str, list[int]], device: str) -> list[dict[str, Any]]:
    """Bytes a second of an all-reduce, 2 (n - 1) / n B / t: inside each node, between the first ranks of two, of all.
    Collective.

    Source of the formula: the bus bandwidth of NVIDIA's nccl-tests, which does not depend on n where links are alike.
    """
    names = list(by_node)
    groups = [("inside " + name, ranks) for name, ranks in by_node.items() if len(ranks) > 1]
    pairs = (
        itertools.combinations(names, 2) if len(names) <= ALL_PAIRS else zip(names, names[1:] + names[:1], strict=True)
    )
    groups += [(f"{a} - {b}", [by_node[a][0], by_node[b][0]]) for a, b in pairs]
    groups += [("all ranks", list(range(dist.get_world_size())))] if len(groups) != 1 or len(names) > 1 else []
    found = []
    for name, ranks in groups:
        rate = _rate(ranks, device)
        if rate is not None:
            found.append({"link": name, "ranks": len(ranks), "bytes_per_s": rate})
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    told = {one["link"]: one for rank in every for one in rank}
    return [told[name] for name, _ in groups if name in told]


def _rate(ranks: Sequence[int], device: str) -> float | None:
    """The rate of one group; None on other ranks. Collective over all ranks, as the group is created here."""
    group: Any = dist.new_group(list(ranks))
    if dist.get_rank() not in ranks:
        return None
    numbers, times = torch.ones(NUMEL, device=device), []
    for _ in range(1 + REPEATS):
        dist.barrier(group)
        began = time.perf_counter()
        dist.all_reduce(numbers, group=group)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        numbers.fill_(1.0)
    share = 2.0 * (len(ranks) - 1) / len(ranks)
    dist.destroy_process_group(group)
    return share * NUMEL * 4 / median(times[1:])


def clocks(by_node: dict[str, list[int]]) -> dict[str, float]:
    """Seconds by which each node's clock is ahead of rank 0's, from the quickest of several round trips. Collective.

    With t0, t2 rank 0's times around a trip and t1 the other's: t1 - (t0 + t2) / 2, off by at most (t2 - t0) / 2.
    """
    group: Any = dist.new_group(backend="gloo")
    rank, ahead = dist.get_rank(), dict[str, float]()
    others = {name: ranks[0] for name, ranks in by_node.items() if 0 not in ranks}
    said = torch.zeros(1, dtype=torch.float64)
    for name, other in others.items():
        trips = []
        for _ in range(PINGS if rank in (0, other) else 0):
            if rank == 0:
                t0 = time.time()
                dist.send(said, other, group)
                dist.recv(said, other, group)
                t2 = time.time()
                trips.append((t2 - t0, float(said) - (t0 + t2) / 2.0))
            else:
                dist.recv(said, 0, group)
                said.fill_(time.time())
                dist.send(said, 0, group)
        if rank == 0:
            ahead[name] = min(trips)[1]
    dist.destroy_process_group(group)
    return ahead


def judge_links(found: Sequence[dict[str, Any]]) -> Finding:
    """No link between nodes is far below the others."""
    between = [one for one in found if " - " in one["link"]]
    usual = median(one["bytes_per_s"] for one in between) if between else 0.0
    slow = [one["link"] for one in between if one["bytes_per_s"] < SLOW_LINK * usual]
    rates = ", ".join(f"{one['link']} {one['bytes_per_s'] / 1e6:,.0f} MB/s" for one in found)
    figures = {"links": list(found)}
    if slow:
        return Finding("links", MIND, f"{', '.join(slow)} below half of the median; {rates}", figures)
    return Finding("links", WELL, f"all-reduce: {rates}" if found else "one rank has none", figures)


def judge_clocks(ahead: dict[str, float]) -> Finding:
    """The clocks of all nodes agree, so that their logs can be read together."""
    if not ahead:
        return Finding("clocks", WELL, "one node has one clock")
    far = max(ahead, key=lambda name: abs(ahead[name]))
    said = f"at most {1e3 * abs(ahead[far]):,.1f} ms from the first node's ({far})"
    state = WELL if abs(ahead[far]) < SKEW_S else MIND
    return Finding("clocks", state, said if state == WELL else f"{said}: set up NTP", {"ahead_s": ahead})
