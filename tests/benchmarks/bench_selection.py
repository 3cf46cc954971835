"""Exact global selection over two ranks, against torch.kthvalue on one gathered tensor and against one read pass.

Both ranks (processes with one thread, gloo) hold half of the scores. In each round they select together, then each
sums its half (a read pass, both at once), then rank 0 alone runs kthvalue on the whole tensor with one thread; the
ratios are medians over rounds of the ratio within a round. Extra memory is the rise of a rank's peak resident size over
a selection (its flags are there before), as a share of its scores.

    python tests/benchmarks/bench_selection.py --json selection.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pat.common.comm import Comm
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.selection import keep_top

RANKS = 2
AIMS = {"of kthvalue": 0.1, "read passes": 5.0, "extra memory": 0.1}
COLUMNS = 4096  # of the matrices: one weight of 16 M elements is 4096 x 4096


def scores_of(case: str, numel: int, rank: int) -> torch.Tensor:
    """This rank's half."""
    generator = torch.Generator().manual_seed(rank)
    scores = torch.empty(numel).normal_(generator=generator)
    if case == "magnitude":
        scores.abs_()
    elif case == "third is zero":  # the gradients of unused embeddings: movement scores that never moved
        scores.masked_fill_(torch.empty(numel).uniform_(generator=generator) < 1 / 3, 0.0)
    elif case == "all zero":
        scores.zero_()
    return scores


CASES = {"normal": 0.5, "magnitude": 0.9, "third is zero": 0.5, "all zero": 0.5}  # sparsity of each


def segments_of(scores: torch.Tensor, keep: torch.Tensor, rank: int) -> list[ScoredSegment]:
    """Parameters of up to 16 M elements."""
    size = COLUMNS * COLUMNS
    parts = list(zip(scores.split(size), keep.split(size), strict=True))
    return [ScoredSegment(f"layer.{rank}.{i}", tuple(s.shape), 0, s, k) for i, (s, k) in enumerate(parts)]


def seconds(function: Callable[[], Any]) -> float:
    """Both ranks start together; the slower one counts."""
    dist.barrier()
    started = time.perf_counter()
    function()
    took = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return float(took)


def resident(key: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(key))
    return int(line.split()[1]) * 1024


def extra_bytes(function: Callable[[], Any]) -> int:
    """Rise of the peak resident size over a call, on the rank where it is highest."""
    ctypes.CDLL(None).malloc_trim(0)  # freed pages would hide what is allocated again
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    function()
    extra = torch.tensor(resident("VmHWM") - before)
    dist.all_reduce(extra, op=dist.ReduceOp.MAX)
    return int(extra)


def measure(case: str, sparsity: float, args: argparse.Namespace, comm: Comm) -> dict[str, float]:
    """Medians of one case."""
    half = args.numel // RANKS
    scores, keep = scores_of(case, half, comm.rank), torch.zeros(half, dtype=torch.uint8)
    segments = segments_of(scores, keep, comm.rank)
    num_keep = args.numel - round(sparsity * args.numel)
    select = lambda: keep_top(segments, num_keep, comm)  # noqa: E731
    gathered = torch.cat([scores_of(case, half, r) for r in range(RANKS)]) if comm.rank == 0 else None
    extra = extra_bytes(select)
    rounds = []
    for _ in range(args.rounds):
        took = seconds(select)
        read = seconds(lambda: scores.sum())
        whole = seconds(lambda: gathered.kthvalue(args.numel - num_keep) if gathered is not None else None)
        rounds.append((took, read, whole))
    middle = statistics.median
    return {
        "select ms": middle(t for t, _, _ in rounds) * 1e3,
        "read pass ms": middle(r for _, r, _ in rounds) * 1e3,
        "kthvalue ms": middle(w for _, _, w in rounds) * 1e3,
        "of kthvalue": middle(t / w for t, _, w in rounds),
        "read passes": middle(t / r for t, r, _ in rounds),
        "extra memory": extra / (half * 4),
    }


def worker(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    comm = Comm(rank, RANKS)
    keep_top(segments_of(torch.randn(1000), torch.zeros(1000, dtype=torch.uint8), rank), 500, comm)  # connects
    cases = {case: measure(case, sparsity, args, comm) for case, sparsity in CASES.items()}
    if rank == 0:
        report(cases, args)
    dist.destroy_process_group()


def report(cases: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    """A table, and the JSON file."""
    keys = list(next(iter(cases.values())))
    print(f"{args.numel / 1e6:.0f} M scores on {RANKS} ranks, median of {args.rounds} rounds")
    print(f"{'scores':15s}" + "".join(f"{key:>14s}" for key in keys))
    for case, row in cases.items():
        print(f"{case:15s}" + "".join(f"{row[key]:14.3f}" for key in keys))
    print(f"{'aim':15s}" + "".join(f"{AIMS.get(key, ''):>14}" for key in keys))
    if args.json:
        Path(args.json).write_text(
            json.dumps({"numel": args.numel, "rounds": args.rounds, "aims": AIMS, "cases": cases})
        )


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numel", type=int, default=1 << 26, help="scores over all ranks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="write the figures here")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, args=(parser.parse_args(), f"{folder}/meeting"), nprocs=RANKS)


if __name__ == "__main__":
    main()
