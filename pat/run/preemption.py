"""The request to save and leave: a flag that the loop reads."""

from __future__ import annotations

import os
import signal
from functools import cache
from typing import Any

from pat.common import signals


class Preempted(RuntimeError):
    """Somebody asked the run to save and leave."""


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
        if os.getpid() != self._pid:  # a forked data worker, where nothing reads the flag
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@cache
def preemption_flag() -> PreemptionFlag:
    """This process's flag; the first call, in the main thread, installs its signal handlers."""
    return PreemptionFlag()
