"""What the doctor's ranks do: reduce, write, and train the parity run at each ZeRO stage."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pat.common.files import write_json
from pat.config import frozen
from pat.launch.environment import rank_environment
from pat.launch.rank import run_rank
from pat.run.directory import write_exit

NUMEL = 1_000_003  # of a reduced tensor: odd, so that ranks' parts differ in size
REPEATS = 5
WRITTEN = 64 << 20  # bytes of each rank
STAGES = (1, 2, 3)


def stage_dir(folder: Path, stage: int) -> Path:
    """The run of a ZeRO stage."""
    return folder / f"zero{stage}"


def numbers(rank: int, whole: bool) -> Tensor:
    """(NUMEL,) fp32 that every rank can make for every other; whole: below 2^16, so that fp32 sums are exact."""
    generator = torch.Generator().manual_seed(rank)
    if whole:
        return torch.randint(-(2**16), 2**16, (NUMEL,), generator=generator).float()
    return torch.randn(NUMEL, generator=generator)


def reductions(device: str) -> dict[str, Any]:
    """All-reduces against the exact sums, and whether they repeat themselves on every rank. Collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = numbers(rank, True).to(device)
    dist.all_reduce(whole)
    exact = sum((numbers(r, True).double() for r in range(world)), torch.zeros(NUMEL, dtype=torch.float64))
    hashes = []
    error = 0.0
    real = sum((numbers(r, False).double() for r in range(world)), torch.zeros(NUMEL, dtype=torch.float64))
    size = sum((numbers(r, False).double().abs() for r in range(world)), torch.zeros(NUMEL, dtype=torch.float64))
    for _ in range(REPEATS):
        reduced = numbers(rank, False).to(device)
        dist.all_reduce(reduced)
        error = max(error, float(((reduced.cpu().double() - real).abs() / size).max()))
        hashes.append(hashlib.sha256(reduced.cpu().numpy().tobytes()).hexdigest())
    every: list[Any] = [None] * world
    dist.all_gather_object(every, (bool(torch.equal(whole.cpu().double(), exact)), error, hashes))
    return {
        "exact": all(one[0] for one in every),
        "error": max(one[1] for one in every),
        "allowed": (world - 1) * torch.finfo(torch.float32).eps,  # of world - 1 roundings, over the sum of sizes
        "different_bits": len({text for one in every for text in one[2]}),
    }


def saving(folder: Path) -> dict[str, Any]:
    """All ranks write at the same time, to the disk. Collective."""
    content = torch.randint(0, 256, (WRITTEN,), dtype=torch.uint8).numpy().tobytes()
    path = folder / f"written-{dist.get_rank()}"
    dist.barrier()
    began = time.perf_counter()
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        dist.barrier()
    finally:
        path.unlink(missing_ok=True)
    return {"bytes": WRITTEN * dist.get_world_size(), "seconds": time.perf_counter() - began}


def work(folder: Path) -> int:
    """One rank: every check, then the runs. Collective."""
    from pat.zero import engine

    engine.init_distributed(frozen.load(folder / "config.yaml"))
    measure(folder, own_device())
    code = train_stages(folder)
    if dist.get_rank() == 0:
        write_exit(folder, code)
    return code


def own_device() -> str:
    """This rank's device, which is the current one from now on."""
    from pat.zero.engine import accelerator

    device = f"cuda:{os.environ['LOCAL_RANK']}" if accelerator() == "cuda" else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
    return device


def measure(folder: Path, device: str) -> None:
    """Measure what needs no training, and write it to a file. Collective."""
    measured = {"reductions": reductions(device), "saving": saving(folder)}
    if dist.get_rank() == 0:
        write_json(folder / "ranks.json", measured)


def train_stages(folder: Path) -> int:
    """The runs, one after another; the worst exit code. Collective."""
    from pat import train

    codes = []
    for stage in STAGES:
        codes.append(train.main(stage_dir(folder, stage)))
        gc.collect()  # removes the previous engine, with its optimizer's hooks and ZeRO 3's parameters
    return max(codes)


def main() -> None:
    """Entry of `python -m pat.doctor.ranks FOLDER`, started by `pat doctor` through pat's launcher."""
    environment = rank_environment()
    assert environment is not None, "started by `pat doctor`"
    code = run_rank(Path(sys.argv[1]), environment.rank, work)
    sys.stdout.flush()
    os._exit(int(code))


if __name__ == "__main__":
    main()
