"""What the benchmarks of quality share: `pat` as a user calls it, with one rank and one thread, and what it costs."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
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


def cpu_seconds_of_children() -> float:
    """Of all processes that have ended: what a command costs, whatever the machine does besides."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tidy(text: str) -> str:
    """Without the names of this machine's folders."""
    return text.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")


def shown(command: Sequence[str]) -> str:
    """A command as one types it in the repository."""
    words = ["pat", *command[len(PAT) :]] if tuple(command[: len(PAT)]) == PAT else command
    words = ["python", *words[1:]] if words[0] == sys.executable else words
    return tidy(shlex.join(words))
