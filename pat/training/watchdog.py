"""A rank ends itself when nothing has happened for too long, because it hangs or another rank does.

Collective timeouts are not enough: DeepSpeed's groups have torch's default, whatever the first group was given, and a
rank may hang outside of any collective.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pat.launch.process import rank_records
from pat.run.directory import ExitCode, RunDir, read_exit, write_exit

WORDS_S = 30.0  # for the last words of a rank
_TICK_S = 1.0


class Watchdog:
    """Sleeps until `start`; from then on `beat` must be called again and again."""

    def __init__(self) -> None:
        self.waited_s, self.barked = 0.0, False
        self.stopped = threading.Event()

    def start(self, patience_s: float, bite: Callable[[], object], bark: Callable[[float], object]) -> None:
        """Call `bite` once, from a thread, when there has been no beat for `patience_s` seconds.

        Half of that time earlier, `bark` is called with the seconds so far, while the run can still report it. Time in
        which the whole process stood still (a suspended job) does not count.
        """

        def guard() -> None:
            while not self.stopped.is_set():
                before = time.monotonic()
                self.stopped.wait(_TICK_S)
                self.waited_s += min(time.monotonic() - before, 2 * _TICK_S)
                if self.stopped.is_set():
                    return
                if self.waited_s > patience_s / 2 and not self.barked:
                    self.barked = True
                    # On a full pipe it waits for ever.
                    threading.Thread(target=bark, args=(self.waited_s,), name="watchdog-bark", daemon=True).start()
                if self.waited_s > patience_s:
                    bite()
                    return

        threading.Thread(target=guard, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Tell that the run has moved: the wait begins anew."""
        self.waited_s, self.barked = 0.0, False

    def stop(self) -> None:
        """End the watch for good: the run is over, and silence means nothing any more."""
        self.stopped.set()


def end_rank(run_dir: Path, rank: int, timeout_min: float, command: str = "the same command") -> None:
    """Say what this rank waits for, in its log, and leave as a lost rank does, whatever the main thread is in.

    command: how to name the one that goes on.
    """
    message = (
        f"nothing has happened for {timeout_min:g} minutes (engine.timeout_min): a rank hangs; the logs of the other "
        f"ranks (logs/rank-N.log) show where they wait for it, and {command} goes on from the newest checkpoint"
    )
    last = threading.Timer(WORDS_S, os._exit, (ExitCode.ERROR,))  # a full pipe or a hung file system must not keep it
    last.daemon = True
    last.start()
    with contextlib.suppress(OSError):
        for record in rank_records(run_dir):
            if record.rank == rank:
                replace(record, code=int(ExitCode.ERROR), message=message, time=time.time()).write(run_dir)
        if rank == 0 and read_exit(RunDir(run_dir).path) is None:
            write_exit(run_dir, ExitCode.ERROR, message)
    with contextlib.suppress(OSError, ValueError):
        print(f"pat: rank {rank}: {message}", flush=True)
        faulthandler.dump_traceback(getattr(sys.stderr, "log", sys.stderr))
    os._exit(ExitCode.ERROR)
