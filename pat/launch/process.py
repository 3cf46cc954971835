"""Processes of a run: their identity, whether they live, and a guard that none outlives its parent (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pat.common import files
from pat.common.files import read_json, write_json
from pat.run.directory import HOST, ExitCode, RunDir

APART_S = 60.0  # ranks of one start begin within, by their own clocks
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


@dataclass(frozen=True)
class Process:
    """A process, with its start time, so that a recycled pid is not mistaken for it."""

    pid: int
    start: int  # clock ticks since boot
    host: str = HOST

    @staticmethod
    def of(pid: int) -> Process | None:
        """The process that has this pid on this machine now, if it is more than a zombie."""
        try:
            # The command name, in parentheses, may hold anything; state is the first field after it.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else Process(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether it still runs; only to be asked on its own machine."""
        return Process.of(self.pid) == self

    def send(self, number: int) -> None:
        """A signal, unless it has gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class RankRecord:
    """`ranks/rank-N.json`: a rank's own record."""

    rank: int
    process: Process
    code: int | None = None  # how it left, by itself; a rank that died never says
    message: str = ""
    time: float = 0.0  # of leaving
    died: bool = False  # recorded by somebody else
    job: str = ""  # Slurm's id of the job that it is in

    def write(self, run_dir: Path) -> None:
        """Atomically, so that a reader never sees half of it."""
        write_json(RunDir(run_dir).rank(self.rank), asdict(self))


def said_by_first(run_dir: Path, since: float) -> str | None:
    """Why rank 0 of a start has left by itself, if it has; `since` is when another rank of the start began (Unix)."""
    for record in rank_records(run_dir, [0]):
        if record.code in (ExitCode.BAD_INPUT, ExitCode.ERROR) and record.time > since - APART_S:
            return record.message
    return None


def rank_records(run_dir: Path, which: Iterable[int] | None = None) -> list[RankRecord]:
    """The ranks (of those named) that have said they exist, on any machine, in rank order."""
    run = RunDir(run_dir)
    paths = run.ranks.glob("rank-*.json") if which is None else map(run.rank, which)
    contents = map(read_json, paths)
    records = [RankRecord(**item | {"process": Process(**item["process"])}) for item in contents if item]
    return sorted(records, key=lambda record: record.rank)


def die_with_parent(number: int) -> Callable[[], None]:
    """For `Popen(preexec_fn=...)`: the child gets this signal when the thread that started it ends."""
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            os.kill(os.getpid(), number)

    return prepare


def leave_with_parent(number: int) -> None:
    """The same for this process itself."""
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


class InUseError(ValueError):
    """Another start holds the directory: nothing in it may be touched."""


@contextlib.contextmanager
def only_user_of(run_dir: Path, key: str = "run.dir", holds: str = "config.yaml") -> Iterator[None]:
    """Hold a run directory, which `key` names, for one start; ValueError while another holds it.

    A directory that was created here is removed again if the start fails before the file `holds` is in it.
    """
    run = RunDir(run_dir)
    made = files.make(run.path, key)
    with _opened(run.lock, key) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(file.fileno()).st_nlink > 0  # else its holder has failed and removed it by now
        except BlockingIOError:
            free = False
        except OSError as error:
            said = f"{key}={run_dir} is on a file system without locks ({error.strerror})"
            raise ValueError(f"{said}: give a folder on another one") from None
        if not free:
            file.seek(0)
            raise InUseError(
                f"{run_dir} is in use by process {file.read().strip() or 'unknown'}: "
                f"wait for it, or give this run its own {key}"
            )
        file.truncate(0)
        file.write(f"{os.getpid()} on {HOST}")
        file.flush()
        with files.taken_away(run.path, made, (run.path / holds).exists):  # while the lock is still held
            yield


def _opened(lock: Path, key: str) -> IO[str]:
    try:
        return open(lock, "a+")
    except OSError as error:
        raise ValueError(f"{key}={lock.parent} cannot be written to: {error.strerror}; give another") from None


def held_since(run_dir: Path) -> float | None:
    """When the start on this machine began that holds the directory, from before its ranks exist on, in seconds since
    the epoch; None: there is none."""
    lock = RunDir(run_dir).lock
    try:
        pid, _, host = lock.read_text(encoding="utf-8").partition(" on ")
        held = host == HOST and any(_same(file, lock) for file in Path(f"/proc/{int(pid)}/fd").iterdir())
        return lock.stat().st_mtime if held else None
    except (OSError, ValueError):  # no lock, no such process, or another user's
        return None


def _same(file: Path, lock: Path) -> bool:
    with contextlib.suppress(OSError):  # closed meanwhile
        return file.samefile(lock)
    return False


def clear_ranks(run_dir: Path, patience_s: float = 120.0) -> None:
    """End what earlier starts left behind on this machine, and forget all ranks."""
    end_old_ranks(run_dir, patience_s)
    forget_ranks_from(run_dir, 0)


def end_old_ranks(run_dir: Path, patience_s: float = 120.0) -> None:
    """Let the ranks that an earlier, killed start left on this machine save and leave; end those that do not."""
    old = [record.process for record in rank_records(run_dir) if record.process.host == HOST]
    for process in old:  # their parent is gone (its lock is ours now), so they are saving, or stuck
        process.send(signal.SIGTERM)
    if not wait_gone(old, 1.0):
        print(f"pat: ranks of an earlier start still save in {run_dir}; waiting", flush=True)
    wait_gone(old, patience_s)
    for process in old:
        process.send(signal.SIGKILL)
    wait_gone(old, 5.0)


def forget_ranks_from(run_dir: Path, number: int) -> None:
    """Drop the records of ranks that an earlier start had, on other machines perhaps, and this one does not."""
    for record in rank_records(run_dir):
        if record.rank >= number:
            RunDir(run_dir).rank(record.rank).unlink(missing_ok=True)


def end_group(leader: subprocess.Popen[Any]) -> None:
    """End a process that was started in a session of its own, and its children, if it still runs."""
    if leader.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


def wait_gone(processes: list[Process], seconds: float) -> bool:
    """Whether all have ended within the time."""
    end = time.monotonic() + seconds
    while any(process.alive for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


ORPHAN_GRACE_S = 120.0  # to save, once the parent is dead
POLL_S = 1.0  # between two looks at a parent that the kernel gives no notice of


def restore_terminal(terminal: IO[str]) -> None:
    """Show the cursor, which an interrupted progress bar has hidden."""
    if terminal.isatty():
        terminal.write("\x1b[?25h")
        terminal.flush()
