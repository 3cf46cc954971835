"""What pruning costs each rank as ranks grow at a fixed model, with all ranks simulated in one process.

Each rank is a thread with its own shards, cut as ZeRO 2 and ZeRO 3 cut them; times are the CPU time of a rank's thread
(what it waits for, and the collectives themselves, do not count: there is no network here). Per number of ranks:

    selection    keep the highest scores of all ranks, exactly
    mask update  the passes before and after the optimizer's step in the soft phase
    re-shard     reading a rank's weights and moments from a checkpoint that 8 ranks wrote

Masks, updated weights and re-sharded state are compared bit for bit with those of one rank.

    python tests/benchmarks/bench_scale.py --json results/scale.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pat.checkpoint.reader import CheckpointReader
from pat.common.comm import Comm
from pat.pruning import registry
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.kernels import make_kernels
from pat.pruning.weights.selection import select_units
from pat.schema import MaskedGradConfig
from tests.fake_run import write_checkpoint

SPARSITY = 0.8
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TIMED = 16  # ranks whose mask update and re-sharding are timed; all are done and compared
LAYOUTS = ("zero12", "zero3")
WRITERS = 8


@dataclass
class Meeting:
    """Where the threads of one simulation meet: the last to come finishes the collective."""

    barrier: threading.Barrier = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)
    total: Any = None
    items: list[Any] = field(default_factory=list)
    result: Any = None

    def open_for(self, ranks: int) -> Meeting:
        """So many ranks take part."""
        self.barrier, self.items = threading.Barrier(ranks, self._finish), [None] * ranks
        return self

    def _finish(self) -> None:
        self.result = list(self.items) if self.total is None else self.total
        self.total = None


@dataclass(frozen=True)
class SimulatedComm(Comm):
    """Collectives between threads; `spent` is the CPU time that a rank gave to them."""

    meeting: Meeting = field(kw_only=True)
    spent: list[float] = field(default_factory=lambda: [0.0])

    def sum(self, tensor: Tensor) -> Tensor:
        def add() -> None:
            with self.meeting.lock:
                total = self.meeting.total
                self.meeting.total = tensor.clone() if total is None else total.add_(tensor)

        return self._meet(add)

    def gather(self, item: Any) -> list[Any]:
        def put() -> None:
            self.meeting.items[self.rank] = item

        return self._meet(put)

    def _meet(self, give: Callable[[], None]) -> Any:
        started = time.thread_time()
        give()
        self.meeting.barrier.wait()
        found = self.meeting.result  # no thread can begin the next collective's end before all have read it
        self.spent[0] += time.thread_time() - started
        return found


def places(sizes: Sequence[int], rank: int, ranks: int, layout: str) -> list[tuple[int, int, int]]:
    """(parameter, start, numel) of what a rank holds: of every parameter a part (zero3), or of all in a row."""
    found = []
    if layout == "zero3":
        for index, size in enumerate(sizes):
            width = -(-size // ranks)
            found.append((index, rank * width, max(0, min(width, size - rank * width))))
    else:
        total, begin = sum(sizes), 0
        width = -(-total // ranks)
        for index, size in enumerate(sizes):
            low, high = max(rank * width, begin), min((rank + 1) * width, begin + size)
            found.append((index, low - begin, high - low))
            begin += size
    return [place for place in found if place[2] > 0]


def select(scores: Sequence[Tensor], ranks: int, layout: str) -> tuple[list[Tensor], list[float]]:
    """(flags of every parameter, CPU seconds of every rank) of one selection."""
    keep = [torch.full((s.numel(),), 7, dtype=torch.uint8) for s in scores]
    sizes, meeting = [s.numel() for s in scores], Meeting().open_for(ranks)
    seconds, errors = [0.0] * ranks, []

    def rank_thread(rank: int) -> None:
        comm = SimulatedComm(rank, ranks, meeting=meeting)
        segments = [
            ScoredSegment(f"layer.{i}", tuple(scores[i].shape), a, scores[i].view(-1)[a : a + n], keep[i][a : a + n])
            for i, a, n in places(sizes, rank, ranks, layout)
        ]
        started = time.thread_time()
        try:
            select_units(segments, SPARSITY, Global(), comm)
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()
        seconds[rank] = time.thread_time() - started - comm.spent[0]

    threads = [threading.Thread(target=rank_thread, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return keep, seconds


def update(state: dict[str, Tensor], ranks: int) -> tuple[dict[str, Tensor], list[float]]:
    """(state afterwards, CPU seconds of the timed ranks) of the passes around one optimizer step, shard by shard."""
    kernels = make_kernels(registry.build("criterion", "movement"), MaskedGradConfig(), "eager")
    state = {name: value.clone() for name, value in state.items()}
    shards = [
        dict(zip(state, parts, strict=True)) for parts in zip(*(v.chunk(ranks) for v in state.values()), strict=True)
    ]
    timed, seconds = set(_some(ranks)), []
    for rank, shard in enumerate(shards):
        started = time.thread_time()
        kernels.pre_soft(shard["score"], shard["dense"], shard["grad"], shard["keep"], 0.0, 1e-4)
        kernels.post_soft(shard["out"], shard["dense"], shard["keep"])
        if rank in timed:
            seconds.append(time.thread_time() - started)
    return state, seconds


def reslice(folder: Path, sizes: dict[str, int], ranks: int) -> tuple[dict[str, Tensor], list[float]]:
    """(weights and moments put together again, CPU seconds of the timed ranks), each rank with a reader of its own."""
    kinds, timed, seconds = ("weight", "exp_avg", "exp_avg_sq"), set(_some(ranks)), []
    whole = {f"{kind} {name}": torch.empty(size) for kind in kinds for name, size in sizes.items()}
    names, reader = list(sizes), None
    for rank in range(ranks):
        started = time.thread_time()
        if rank in timed or reader is None:
            reader = CheckpointReader(folder, verify=False)
        for index, start, numel in places(list(sizes.values()), rank, ranks, "zero3"):
            for kind in kinds:
                part = whole[f"{kind} {names[index]}"][start : start + numel]
                reader.read(kind, names[index], start, numel, out=part)
        if rank in timed:
            seconds.append(time.thread_time() - started)
    return whole, seconds


def _some(ranks: int) -> list[int]:
    return sorted({round(i * (ranks - 1) / max(1, TIMED - 1)) for i in range(TIMED)})


def model(layers: int, side: int) -> nn.Module:
    """`layers` square matrices, so many weights whatever the number of ranks."""
    torch.manual_seed(0)
    return nn.ModuleDict({f"{i}_proj": nn.Linear(side, side, bias=False) for i in range(layers)})


def simulate(counts: Sequence[int], layers: int, side: int) -> list[dict[str, Any]]:
    """A row per number of ranks; AssertionError where a result differs from that of one rank."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(side, side, generator=generator) for _ in range(layers)]
    numel = layers * side * side
    state = {name: torch.randn(numel, generator=generator) for name in ("score", "dense", "grad", "out")}
    state["keep"] = (torch.rand(numel, generator=generator) > SPARSITY).to(torch.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "step-00000020"
        write_checkpoint(folder, model(layers, side), ranks=WRITERS, layout="zero3")
        sizes = {p["name"]: side * side for p in CheckpointReader(folder).manifest["parameters"]}
        alone = select(scores, 1, "zero12")[0], update(state, 1)[0], reslice(folder, sizes, 1)[0]
        for ranks in counts:
            row: dict[str, Any] = {"ranks": ranks}
            for layout in LAYOUTS:
                keep, seconds = select(scores, ranks, layout)
                assert all(map(torch.equal, keep, alone[0])), f"other masks on {ranks} ranks, {layout}"
                row |= _figures(f"selection {layout}", seconds)
            changed, seconds = update(state, ranks)
            assert all(torch.equal(changed[k], alone[1][k]) for k in changed), f"another update on {ranks} ranks"
            row |= _figures("mask update", seconds)
            read, seconds = reslice(folder, sizes, ranks)
            assert all(torch.equal(read[k], alone[2][k]) for k in read), f"another state on {ranks} ranks"
            rows.append(row | _figures("re-slice", seconds))
            print(_line(rows[-1], first=len(rows) == 1), flush=True)
    return rows


def _figures(what: str, seconds: list[float]) -> dict[str, float]:
    return {f"{what} ms": statistics.median(seconds) * 1e3, f"{what} ms, slowest": max(seconds) * 1e3}


def _line(row: dict[str, Any], first: bool) -> str:
    keys = [key for key in row if "slowest" not in key]
    head = "".join(f"{key:>22s}" for key in keys) + "\n" if first else ""
    return head + "".join(f"{row[key]:>22,.2f}" if key != "ranks" else f"{row[key]:>22,d}" for key in keys)


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"CPU ms of the median rank, {options.layers} matrices of {options.side} x {options.side}; "
        "every result is compared with that of one rank"
    )
    rows = simulate(options.ranks, options.layers, options.side)
    if options.json:
        content = {
            "command": "python " + " ".join(sys.argv),
            "weights": options.layers * options.side**2,
            "identical": True,  # or `simulate` had stopped
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
