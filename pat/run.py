"""What a run owns outside the model: its directory, exit code, seeds and the request to stop."""

from __future__ import annotations

import enum
import importlib.metadata
import json
import os
import random
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import pat
from pat import signals

HOST = socket.gethostname()


class ExitCode(enum.IntEnum):
    """What the shell sees; written to `exit.json` by rank 0, because launchers replace the ranks' own codes."""

    meaning: str  # for help texts

    DONE = 0, "done"
    ERROR = 1, "unexpected error; the trace is in RUN/logs/rank-N.log"
    BAD_INPUT = 2, "bad input or configuration; the message says what to change"
    DIVERGED = (
        3,
        "diverged: NaN or exploding loss, too many steps without a finite gradient; the last good checkpoint is kept",
    )
    BROKEN_PROMISE = 4, "a promise could not be kept: target missed, invariant broken, checkpoint unreadable"
    PREEMPTED = 85, "preempted (SIGUSR1, SIGTERM, Ctrl-C): the state is saved, run the same command again"
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
        """Whether the same start again would end the same way: a job does not go back into the queue."""
        return self in (ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.DIVERGED, ExitCode.BROKEN_PROMISE)


@dataclass(frozen=True)
class RunDir:
    """The files of one run."""

    path: Path

    config = property(lambda self: self.path / "config.yaml")
    version = property(lambda self: self.path / "version.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    summary = property(lambda self: self.path / "summary.json")
    exit = property(lambda self: self.path / "exit.json")
    starts = property(lambda self: self.path / "starts.jsonl")
    job = property(lambda self: self.path / "slurm.json")
    checkpoints = property(lambda self: self.path / "checkpoints")
    logs = property(lambda self: self.path / "logs")
    ranks = property(lambda self: self.path / "ranks")
    signals = property(lambda self: self.path / "hosts" / "signals.json")
    lock = property(lambda self: self.path / ".lock")

    def log(self, rank: int) -> Path:
        """What this rank printed."""
        return self.logs / f"rank-{rank}.log"

    def rank(self, rank: int) -> Path:
        """Who this rank is: pid, host, start time."""
        return self.ranks / f"rank-{rank}.json"


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: str | Path) -> None:
    """Make names in a directory (a rename, a new file) survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, content: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: str | Path) -> Any | None:
    """The content, or None where there is no (whole) file."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def write_exit(run_dir: str | Path, code: int, message: str = "") -> None:
    """Say how the run ended; rank 0 only, after everything else is on disk."""
    content = {"code": int(code), "meaning": ExitCode(code).name.lower(), "message": message, "time": time.time()}
    write_json(RunDir(Path(run_dir)).exit, content)


def read_exit(run_dir: str | Path) -> dict[str, Any] | None:
    """How the run ended, or None while it is running or when it died."""
    return read_json(RunDir(Path(run_dir)).exit)


def versions() -> dict[str, str]:
    """The code that runs: package, git commit where there is one, and what the numbers depend on."""
    found = {"pat": pat.__version__}
    for name in ("torch", "deepspeed", "transformers", "datasets", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = git_commit()
    return found | ({"git": commit} if commit else {})


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, `-dirty` if it was edited; None when installed."""
    root = Path(pat.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "-c", f"safe.directory={root}"]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        edited = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if edited.stdout.strip() else "")


def seed_everything(seed: int) -> None:
    """The same seed on every rank: what must differ by rank says so where it is used."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class PreemptionFlag:
    """Set by SIGUSR1, SIGTERM or Ctrl-C, read by the loop; the handler does nothing else."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._pid = os.getpid()
        for number in signals.TO_STOP:
            signal.signal(number, self._handle)

    @property
    def requested(self) -> bool:
        """Whether somebody asked this rank to save and leave."""
        return self.signal is not None

    def _handle(self, number: int, _frame: Any) -> None:
        if os.getpid() != self._pid:  # a forked data worker: the flag is not read there
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@cache
def preemption_flag() -> PreemptionFlag:
    """This process's flag; the first call, in the main thread, installs its signal handlers."""
    return PreemptionFlag()
