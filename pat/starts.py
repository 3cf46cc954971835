"""The starts of a run, a line of starts.jsonl each: how often it came back, from where, with how many ranks."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from pat.run import HOST, RunDir


def latest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint; 0 without any."""
    try:
        return int((RunDir(run_dir).checkpoints / "latest").read_text().strip().removeprefix("step-"))
    except (OSError, ValueError):
        return 0


def record(run_dir: Path, ranks: int) -> None:
    """Say that the run starts now; whoever holds the run directory."""
    line: dict[str, Any] = {"time": round(time.time(), 3), "host": HOST, "ranks": ranks, "step": latest_step(run_dir)}
    if "SLURM_JOB_ID" in os.environ:
        line |= {"job_id": os.environ["SLURM_JOB_ID"], "job_restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}
    with open(RunDir(run_dir).starts, "a") as file:
        file.write(json.dumps(line) + "\n")


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All starts, oldest first; a line that a crash has torn is left out."""
    found = []
    with contextlib.suppress(OSError):
        for line in RunDir(run_dir).starts.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
