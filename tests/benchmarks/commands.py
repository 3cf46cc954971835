"""What the benchmarks of quality share: `pat` as a user calls it, with one rank and one thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAT = (sys.executable, "-m", "pat.cli")
ONE_THREAD = ("engine.world_size=1", "engine.threads_per_rank=1", "logger=none", "train.keep_last=1")
SHOWN = 3000  # characters of a failed command's output


def pat(*arguments: str) -> None:
    """One command, which must succeed."""
    command = [*PAT, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{done.stdout[-SHOWN:]}{done.stderr[-SHOWN:]}")


def spread(values: list[float]) -> float:
    """The largest less the smallest."""
    return max(values) - min(values)
