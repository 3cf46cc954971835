"""One rank: what it does around `pat.train.main` so that it is supervised, logged and never left behind."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from pat.launch import process
from pat.launch.process import ORPHAN_GRACE_S, POLL_S, restore_terminal
from pat.run import directory, preemption
from pat.run.directory import ExitCode
from pat.zero.launcher import LAUNCHER_PID


class Log(io.TextIOWrapper):
    """A rank's log. On a full disk lines are lost: that must neither end the rank nor hide why it leaves."""

    def write(self, text: str, /) -> int:
        """Like a text file's, but raises no OSError."""
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Like a text file's, but raises no OSError."""
        with contextlib.suppress(OSError):
            super().flush()


class Tee:
    """Text to this rank's log and, through `sink`, to the terminal."""

    def __init__(self, log: IO[str], terminal: IO[str]) -> None:
        self.log = log
        self.terminal = terminal
        self.sink: Callable[[str], Any] = terminal.write  # a progress bar puts itself in between

    def write(self, text: str) -> int:
        """Write to both and return the length; raises no OSError of the terminal, which may be gone."""
        self.log.write(text)
        with contextlib.suppress(OSError):  # the terminal may be gone: no reason not to save
            self.sink(text)
        return len(text)

    def flush(self) -> None:
        """Flush both; raises no OSError of the terminal."""
        self.log.flush()
        with contextlib.suppress(OSError):
            self.terminal.flush()

    def isatty(self) -> bool:
        """Colours and bars belong to the terminal, not to this stream."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)


def redirect_output(run_dir: Path, rank: int) -> IO[str]:
    """Send all output, also that of C code and children, to the rank's log; rank 0's Python output also to
    the terminal. Returns the terminal as a stream."""
    directory.RunDir(run_dir).logs.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(1), "w", buffering=1, errors="replace")
    file = open(directory.RunDir(run_dir).log(rank), "ab")  # noqa: SIM115
    log = Log(file, encoding="utf-8", errors="replace", line_buffering=True)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    stream: Any = Tee(log, terminal) if rank == 0 else log
    sys.stdout = sys.stderr = stream
    show = warnings.showwarning  # other packages' warnings are for the log
    warnings.showwarning = lambda *what, **_: show(*what[:4], file=log)
    return terminal


def watch_parent() -> None:
    """When the parent dies: ask this rank to save and leave, and end it if it does not."""
    parent = os.getppid()
    if not parent:  # the first process of a container: nobody to outlive
        return
    process.leave_with_parent(signal.SIGTERM)
    until_it_ends = _end_of(parent)
    launcher = os.environ.get(LAUNCHER_PID, str(parent))  # it may have ended while this process has begun
    if until_it_ends is None or os.getppid() != parent or launcher != str(parent):
        os.kill(os.getpid(), signal.SIGTERM)
        return

    def wait() -> None:
        until_it_ends()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_S)
        os._exit(ExitCode.ERROR)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def _end_of(parent: int) -> Callable[[], None] | None:
    """A function that returns when the parent has ended; None if it has."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)

    try:
        handle = os.pidfd_open(parent)
    except ProcessLookupError:
        return None
    except (AttributeError, OSError):  # Conda's Python lacks it; old kernels and some containers refuse it
        return look
    return lambda: select.select([handle], [], []) and None


class OwnRecord:
    """The record of this process as a rank of a run, in the run's directory from `write` on."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        me = process.Process.of(os.getpid())
        assert me is not None
        job = os.environ.get("SLURM_JOB_ID", "")
        self.run_dir, self.record, self.written = run_dir, process.RankRecord(rank, me, job=job), False

    def write(self) -> None:
        """Say that this rank exists: its start holds the directory."""
        directory.RunDir(self.run_dir).ranks.mkdir(parents=True, exist_ok=True)
        self.record.write(self.run_dir)
        self.written = True

    def leave(self, code: int, message: str) -> None:
        """Say how it has left, unless it never said that it exists: the record there may be of another start."""
        with contextlib.suppress(OSError):  # a full disk must not hide why the rank leaves
            if self.written:
                replace(self.record, code=int(code), message=message, time=time.time()).write(self.run_dir)


@contextlib.contextmanager
def rank_process(run_dir: Path, rank: int, announce: bool, own: OwnRecord) -> Iterator[Callable[[int, str], None]]:
    """This process is a rank: output goes to its log.

    Yields the function that records how the rank left, and with `announce` says so on the terminal.
    """
    terminal = redirect_output(run_dir, rank)

    def leave(code: int, message: str) -> None:
        own.leave(code, message)
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # under Slurm the terminal is a file, too
            restore_terminal(terminal)
            if announce and message:
                print(
                    f"pat: rank {rank}: {message} (log: {directory.RunDir(run_dir).log(rank)})",
                    file=terminal,
                    flush=True,
                )

    yield leave


def run_rank(
    run_dir: Path, rank: int, work: Callable[[Path], int], announce: bool = False, own: OwnRecord | None = None
) -> ExitCode:
    """Do the work as a rank and return its exit code; an exception becomes BAD_INPUT (ValueError) or ERROR.

    The rank's record is written at first, or by the work itself through `own`.
    """
    preemption.preemption_flag()  # before anybody can find this process in its record, and signal it
    watch_parent()  # nor would anybody miss one whose parent has gone before
    if own is None:
        own = OwnRecord(run_dir, rank)
        own.write()
    with rank_process(run_dir, rank, announce, own) as leave:
        try:
            code, message = ExitCode(work(run_dir)), ""
            if rank == 0:
                message = (directory.read_exit(run_dir) or {}).get("message", "")
        except process.InUseError as error:  # exit.json is the other start's
            leave(ExitCode.BAD_INPUT, str(error))
            return ExitCode.BAD_INPUT
        except ValueError as error:
            code, message = ExitCode.BAD_INPUT, str(error)
            traceback.print_exc(file=getattr(sys.stderr, "log", sys.stderr))
        except KeyboardInterrupt:
            code, message = ExitCode.INTERRUPTED, "interrupted twice"
        except Exception as error:
            code, message = ExitCode.ERROR, f"{type(error).__name__}: {error}"
            traceback.print_exc(file=getattr(sys.stderr, "log", sys.stderr))
        earlier = (directory.read_exit(run_dir) or {}).get("code")  # a start that goes on has removed it
        refused = code == ExitCode.BAD_INPUT and earlier in (ExitCode.DONE, ExitCode.DIVERGED, ExitCode.BROKEN_PROMISE)
        if rank == 0 and not code.agreed and not refused:
            with contextlib.suppress(OSError):
                directory.write_exit(run_dir, code, message)
        leave(code, message)
    return code
