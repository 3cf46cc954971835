"""Reading the logs of a run, also while it writes them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import IO

from pat.common.files import read_json
from pat.launch import slurm
from pat.launch.process import held_since, rank_records
from pat.run.directory import HOST, RunDir, no_run, read_exit


def find(run: Path, rank: int | None) -> Path:
    """The log of a rank, or (None) of the newest Slurm job; ValueError where there is none."""
    directory = RunDir(run)
    if not directory.config.exists():
        raise no_run(run)
    if rank is not None:
        path = directory.log(rank)
        if path.exists():
            return path
        numbers = sorted(int(item.stem.removeprefix("rank-")) for item in directory.logs.glob("rank-*.log"))
        has = f"ranks {numbers[0]} to {numbers[-1]} have one" if numbers else "no rank has started yet"
        raise ValueError(f"{run} has no log of rank {rank}: {has}")
    jobs = sorted(directory.logs.glob("slurm-*.log"), key=lambda item: item.stat().st_mtime)
    if not jobs:
        raise ValueError(f"{run} has no log of a Slurm job: it was not submitted, or its job has not started")
    return jobs[-1]


def last_lines(path: Path, number: int | None) -> tuple[str, int]:
    """(the last lines, or all; the position behind them, in bytes)."""
    content = path.read_bytes()
    lines = content.decode(errors="replace").splitlines(keepends=True)
    return "".join(lines if number is None else lines[max(0, len(lines) - number) :]), len(content)


def follow(run: Path, path: Path, position: int, out: IO[str], pause_s: float = 0.5, ask_s: float = 15.0) -> None:
    """Print what is added to a log until the run has ended for good; Slurm, whose controller many ask, is asked every
    `ask_s` at most."""
    asked = -math.inf
    while True:
        ask = time.monotonic() >= asked + ask_s
        over = _over(run, ask)  # checked before reading, so that the last lines are not lost
        asked = time.monotonic() if ask else asked
        with open(path, "rb") as file:
            file.seek(position)
            added = file.read()
        position += len(added)
        out.write(added.decode(errors="replace"))
        out.flush()
        if over:
            return
        time.sleep(pause_s)


def _over(run: Path, ask: bool) -> bool:
    """Whether nothing works on the run now, and none of its jobs waits; of a job only where Slurm may be asked."""
    records = rank_records(run)
    if any(record.process.host == HOST and record.process.alive for record in records) or held_since(run):
        return False
    job = (read_json(RunDir(run).job) or {}).get("job_id", "")
    if job and not ask:
        return False
    state = slurm.states([job]).get(job) if job else None
    elsewhere = [record for record in records if record.process.host != HOST and record.code is None]
    if state and (state != slurm.FORGOTTEN or not elsewhere or slurm.gone(RunDir(run), job, elsewhere)):
        return state in slurm.OVER
    return read_exit(run) is not None or not elsewhere
