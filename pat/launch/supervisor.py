"""Supervises the ranks of one start until the last has left: passes signals on, notices lost ranks, ends the rest.

DeepSpeed's launcher does not pass signals on (SIGUSR1 kills it and orphans the ranks, SIGTERM gives them 30 s one
after another) and returns 1 whatever the ranks returned. So signals go from here to each rank, never to the launcher,
and the exit code comes from the run directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pat.checkpoint import retention
from pat.common import signals
from pat.common.noise import telling
from pat.config.frozen import same_command
from pat.launch import process
from pat.launch.process import ORPHAN_GRACE_S, Process, RankRecord, restore_terminal
from pat.run import directory
from pat.run.directory import ExitCode, RunDir

GRACE_S = 15.0  # for the others to leave, once one rank is lost
ALONE = {code for code in ExitCode if not code.agreed}  # a rank leaves with them while others may still wait for it


class Supervisor:
    """The ranks of one start: forwards signals, notices lost ranks, ends the rest, finds the exit code."""

    def __init__(self, run_dir: Path, launcher: subprocess.Popen[bytes]) -> None:
        self.run_dir = run_dir
        self.grace_s, self.poll_s = GRACE_S, 0.1
        self.launcher = launcher
        self.old_bytes = {log: log.stat().st_size for log in RunDir(run_dir).logs.glob("rank-*.log")}  # earlier starts
        self.signals: list[int] = []  # received here
        self.delivered: dict[Process, int] = {}  # how many of them each rank has been sent
        self.announced = False
        self.failed: RankRecord | None = None
        self.deadline: float | None = None

    def until_all_have_left(self) -> int:
        """Poll until the launcher and every rank have ended."""
        with self._handlers():
            try:
                while True:
                    over = self._launcher_ended()
                    self.listen()
                    ranks = self.records()
                    living = [rank for rank in ranks if rank.process.alive]
                    if len(living) < len(ranks):  # a rank's last record may be newer than what was read above
                        gone = {rank.rank for rank in ranks} - {rank.rank for rank in living}
                        ranks = [rank for rank in self.records() if rank.rank in gone] + living
                    if over and not living:
                        break
                    self.forward(living)
                    if self._interrupted_twice():
                        self.kill(living)
                        return ExitCode.INTERRUPTED
                    self._end_the_rest(ranks, living, over)
                    time.sleep(self.poll_s)
            finally:
                self._sweep()
                restore_terminal(sys.stdout)
        return self.result()

    def records(self) -> list[RankRecord]:
        """The ranks to watch: all, and all of them on this machine."""
        return process.rank_records(self.run_dir)

    def listen(self) -> None:
        """Take signals from elsewhere."""

    def lost(self, gone: list[RankRecord]) -> list[RankRecord]:
        """Ranks without which the others cannot go on, the likely cause first."""
        return failures([as_dead(rank) if rank.code is None else rank for rank in gone])

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # the owner of the main thread forwards
            yield
            return
        with signals.handled(lambda received, _frame: self.signals.append(received)):
            yield

    def _interrupted_twice(self) -> bool:
        return self.signals.count(signal.SIGINT) > 1

    def forward(self, living: list[RankRecord]) -> None:
        """Pass what has been received on to every rank, also to one that appears later."""
        self.announce()
        for rank in living:
            for number in self.signals[self.delivered.get(rank.process, 0) :]:
                rank.process.send(signals.PASSED_ON[signal.Signals(number)])
            self.delivered[rank.process] = len(self.signals)

    def announce(self) -> None:
        """Say on the terminal that somebody has asked for the end."""
        if self.signals and not self.announced:
            self.announced = True
            name = signal.Signals(self.signals[0]).name
            say(f"{name}: the ranks save their state and leave" + (" (again: end now)" if name == "SIGINT" else ""))

    def _end_the_rest(self, ranks: list[RankRecord], living: list[RankRecord], launcher_ended: bool) -> None:
        if self.deadline is None:
            lost = self.lost([rank for rank in ranks if rank not in living])
            if not lost and not (launcher_ended and living):
                return
            self.failed = lost[0] if lost else None
            # With a rank lost the others cannot finish a collective; with only the launcher lost, all can save.
            self.deadline = time.monotonic() + (self.grace_s if lost else ORPHAN_GRACE_S)
            for rank in living:
                rank.process.send(signal.SIGTERM)
        elif time.monotonic() > self.deadline:
            self.kill(living)

    def kill(self, living: list[RankRecord]) -> None:
        """End all of them now."""
        for rank in living:
            rank.process.send(signal.SIGKILL)
        self._sweep()

    def _launcher_ended(self) -> bool:
        # WNOWAIT keeps the pid, and with it the process group, ours until the sweep.
        if self.launcher.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.launcher.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _sweep(self) -> None:
        """End what is left of the process group: the launcher, data workers, a rank that never said it exists."""
        if self.launcher.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.launcher.pid, signal.SIGKILL)
            self.launcher.wait()

    def result(self) -> int:
        """The run's exit code, when all have left; says why it is not 0."""
        written, failed = directory.read_exit(self.run_dir), self.failed
        if written and not failed:
            if written["message"]:
                say(written["message"])
            return int(written["code"])
        if failed is None:
            say(self.why_nobody_said())
            self._show_logs(0)
            return ExitCode.ERROR
        log = RunDir(self.run_dir).log(failed.rank)
        message = f"rank {failed.rank}{'' if failed.died else ':'} {failed.message}"
        if failed.died:
            say(f"{message}; log: {log}")
            self._show_logs(failed.rank)
            say(
                "if no error is shown above, the rank was killed, most often because the machine ran out of memory; "
                f"{self._goes_on()}"
            )
        else:
            say(f"{message} (log: {log})")
        if written and written["code"] in (ExitCode.DONE, ExitCode.PREEMPTED):
            return int(written["code"])  # the state was complete before this rank was lost
        code = ExitCode.ERROR if failed.code is None else failed.code
        with contextlib.suppress(OSError):  # the disk may be full
            directory.write_exit(self.run_dir, code, message)
        return code

    def why_nobody_said(self) -> str:
        """A sentence where there is neither an exit.json nor a failed rank."""
        if self.records():
            return "no rank said how it ended: the launcher died"
        return "the launcher died before the ranks began"

    def _goes_on(self) -> str:
        """What happens when the command is repeated."""
        saved = retention.steps(RunDir(self.run_dir).checkpoints)
        return (
            f"{same_command(self.run_dir)} goes on from {saved[-1].name}" if saved else "no checkpoint had been saved"
        )

    def _show_logs(self, rank: int) -> None:
        """The last meaningful lines of a rank's log in this start, and the run's progress by rank 0's log."""
        ends = {rank: self._end_of_log(rank, 12)} | ({0: self._end_of_log(0, 3)} if rank != 0 else {})
        for number, lines in ends.items():
            if lines:
                print("\n".join([f"rank {number} said last:", *(f"  {line}" for line in lines)]), file=sys.stderr)
            else:
                print(f"rank {number} said nothing.", file=sys.stderr)
        sys.stderr.flush()

    def _end_of_log(self, rank: int, lines: int) -> list[str]:
        log = RunDir(self.run_dir).log(rank)
        try:
            said = log.read_bytes()[self.old_bytes.get(log, 0) :].decode(errors="replace")
        except OSError:
            return []
        return telling(said, lines)


def failures(ranks: Sequence[RankRecord]) -> list[RankRecord]:
    """Ranks that died before those that left with an error, in order of time: they may have left because it died."""
    failed = [rank for rank in ranks if rank.died or rank.code in ALONE]
    return sorted(failed, key=lambda rank: (not rank.died, rank.time))


def as_dead(rank: RankRecord, where: str = "") -> RankRecord:
    """The record of a rank that is gone without a record of how it left."""
    message = f"died{where} (pid {rank.process.pid}, killed or crashed)"
    return replace(rank, code=int(ExitCode.ERROR), message=message, time=time.time(), died=True)


def say(message: str) -> None:
    """A sentence on the terminal."""
    start = "\n" if sys.stderr.isatty() else ""  # a bar may stand on the line
    print(f"{start}pat: {message}", file=sys.stderr, flush=True)
