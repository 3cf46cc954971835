"""The files of a run, and how it ended."""

from __future__ import annotations

import enum
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pat.common.files import read_json, write_json
from pat.common.text import did_you_mean

HOST = socket.gethostname()
UNTIL = "until"  # the name in metrics.jsonl of the evaluation at the end of a run.until=STEP


class ExitCode(enum.IntEnum):
    """The command's exit code; rank 0 writes it to `exit.json`, because launchers replace the ranks' own codes."""

    meaning: str  # for help texts

    DONE = 0, "done"
    ERROR = 1, "unexpected error; the trace is in RUN/logs/rank-N.log"
    BAD_INPUT = 2, "bad input or configuration; the message says what to change"
    DIVERGED = (
        3,
        "diverged: NaN or exploding loss, too many steps without a finite gradient; the last good checkpoint is kept",
    )
    BROKEN_PROMISE = 4, "a promise could not be kept: target missed, invariant broken, checkpoint unreadable"
    OUTSIDE_ENVELOPE = 5, "a variant is outside its envelope; the checks that failed are named"
    ALERT = 6, "a monitor raised an alert: drift, or prompts that became worse; its cause is named"
    PREEMPTED = (
        85,
        "preempted (SIGUSR1, SIGTERM, Ctrl-C): saved; the same command goes on, without run.resume=never",
    )
    INTERRUPTED = 130, "Ctrl-C twice: ended at once"

    def __new__(cls, value: int, meaning: str) -> Self:
        """An int with a text."""
        code = int.__new__(cls, value)
        code._value_, code.meaning = value, meaning
        return code

    @property
    def agreed(self) -> bool:
        """Whether all ranks leave with it together; otherwise one of them failed, and the others cannot go on."""
        return self not in (ExitCode.ERROR, ExitCode.BAD_INPUT, ExitCode.INTERRUPTED)

    @property
    def final(self) -> bool:
        """Whether the same start again would end the same way: then a job does not go back into the queue."""
        return self in (
            ExitCode.DONE,
            ExitCode.BAD_INPUT,
            ExitCode.DIVERGED,
            ExitCode.BROKEN_PROMISE,
            ExitCode.OUTSIDE_ENVELOPE,
            ExitCode.ALERT,
        )


AT_STEP = "-step-"  # between the name of a pruner and the step, of a folder that has a cut's layers


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: Path

    config = property(lambda self: self.path / "config.yaml")
    version = property(lambda self: self.path / "version.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    wandb_id = property(lambda self: self.path / ".wandb-id")
    summary = property(lambda self: self.path / "summary.json")
    exit = property(lambda self: self.path / "exit.json")
    diverged = property(lambda self: self.path / "diverged.json")  # from then on, until keys change or it is done
    starts = property(lambda self: self.path / "starts.jsonl")
    job = property(lambda self: self.path / "slurm.json")
    checkpoints = property(lambda self: self.path / "checkpoints")
    calibration = property(lambda self: self.path / "calibration")
    logs = property(lambda self: self.path / "logs")
    ranks = property(lambda self: self.path / "ranks")
    signals = property(lambda self: self.path / "hosts" / "signals.json")
    lock = property(lambda self: self.path / ".lock")

    def log(self, rank: int) -> Path:
        """The file with this rank's output."""
        return self.logs / f"rank-{rank}.log"

    def rank(self, rank: int) -> Path:
        """The file with this rank's identity: pid, host, start time."""
        return self.ranks / f"rank-{rank}.json"


def no_run(path: Path) -> ValueError:
    """Why this is no run directory, and which one beside it may be meant."""
    what = "is not a run directory (it has no config.yaml)" if path.is_dir() else "is not there"
    beside = [each.name for each in path.absolute().parent.glob("*") if os.path.isfile(RunDir(each).config)]
    return ValueError(f"{path} {what}: give the folder of a `pat train`{did_you_mean(path.name, beside)}")


def write_exit(run_dir: str | Path, code: int, message: str = "") -> None:
    """Record how the run ended; rank 0 only, after everything else is on disk."""
    run = RunDir(Path(run_dir))
    content = {"code": int(code), "meaning": ExitCode(code).name.lower(), "message": message, "time": time.time()}
    if code == ExitCode.DIVERGED:
        write_json(run.diverged, content)
    elif code == ExitCode.DONE:
        run.diverged.unlink(missing_ok=True)
    write_json(run.exit, content)


def read_exit(run_dir: str | Path) -> dict[str, Any] | None:
    """How the run ended, or None while it is running or when it died."""
    return read_json(RunDir(Path(run_dir)).exit)
