"""Pruner time per step over the base optimizer's own step on the same shard.

Two processes with one thread each work at once, as two ranks do; each round times fused AdamW and then every pass, all
processes together behind a barrier, and the ratio is the median over rounds of (pass / AdamW of that round).

    python tests/benchmarks/bench_kernels.py --json kernels.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pat.pruning import registry
from pat.pruning.weights.kernels import make_kernels, masked_sum_of_squares
from pat.schema import MaskedGradConfig

AIMS = {"compile soft": 1.0, "compile hard": 0.25, "eager soft": 1.5, "eager hard": 0.5}


def worker(args: argparse.Namespace, barrier: Any, results: Any) -> None:
    """One rank's timings: {pass: seconds of each round}."""
    torch.set_num_threads(1)
    n = args.numel
    weight = torch.nn.Parameter(torch.randn(n) * 0.02)
    weight.grad = torch.randn(n) * 1e-3
    optimizer = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0, fused=True)
    dense, score = weight.detach().clone(), torch.zeros(n)
    keep = (torch.rand(n) > 0.5).to(torch.uint8)
    grad, out = weight.grad, weight.detach()
    passes: dict[str, Callable[[], Any]] = {"adamw": optimizer.step}
    for mode in ("compile", "eager"):
        kernels = make_kernels(registry.build("criterion", args.criterion), MaskedGradConfig(), mode)
        passes |= {
            f"{mode} soft pre": lambda k=kernels: k.pre_soft(score, dense, grad, keep, 0.01, args.decay),
            f"{mode} soft post": lambda k=kernels: k.post_soft(out, dense, keep),
            f"{mode} hard": lambda k=kernels: k.pre_hard(grad, keep),
        }
    passes["masked norm"] = lambda: masked_sum_of_squares(grad, keep)
    passes["torch norm"] = lambda: torch.linalg.vector_norm(grad)
    times: dict[str, list[float]] = {name: [] for name in passes}
    for round_ in range(args.rounds + 1):
        for name, function in passes.items():
            barrier.wait()
            started = time.perf_counter()
            function()
            if round_:  # the first compiles and touches the pages
                times[name].append(time.perf_counter() - started)
    results.put(times)


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians over rounds of each pass over AdamW; soft is pre + post."""
    base = times["adamw"]
    series = {name: [a / b for a, b in zip(t, base, strict=True)] for name, t in times.items() if name != "adamw"}
    for mode in ("compile", "eager"):
        series[f"{mode} soft"] = [
            a + b for a, b in zip(series[f"{mode} soft pre"], series[f"{mode} soft post"], strict=True)
        ]
    return {name: statistics.median(values) for name, values in series.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--numel", type=int, default=33_500_000, help="fp32 elements of a shard")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--criterion", default="movement")
    parser.add_argument("--decay", type=float, default=1e-6, help="learning rate x weight decay")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(args.processes), context.Queue()
    workers = [context.Process(target=worker, args=(args, barrier, results)) for _ in range(args.processes)]
    for process in workers:
        process.start()
    measured = [results.get() for _ in workers]
    for process in workers:
        process.join()
    per_rank = [ratios(times) for times in measured]
    figures = {name: statistics.mean(r[name] for r in per_rank) for name in per_rank[0]}
    adamw_ms = 1e3 * statistics.mean(statistics.median(t["adamw"]) for t in measured)
    print(f"fused AdamW, {args.numel / 1e6:.1f} M elements, {args.processes} processes: {adamw_ms:.1f} ms")
    for name, value in figures.items():
        aim = f"  (aim {AIMS[name]})" if name in AIMS else ""
        print(f"{name:18} {value:5.2f} x AdamW{aim}")
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        record = {"settings": settings, "torch": torch.__version__, "adamw_ms": adamw_ms, "over_adamw": figures}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
