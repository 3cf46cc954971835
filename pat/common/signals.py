"""Which signals ask a run to stop, and what is passed on for each: the same for a rank, a supervisor and a sweep."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Collection, Generator
from types import FrameType

# Received -> sent to the ranks. Ctrl-C is passed on as SIGTERM: a second SIGINT would end a rank at once, and whoever
# passes signals on counts the Ctrl-Cs itself.
PASSED_ON = {signal.SIGUSR1: signal.SIGUSR1, signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGTERM}
TO_STOP = tuple(PASSED_ON)
BY_OTHERS = tuple(number for number in TO_STOP if number != signal.SIGINT)  # all but Ctrl-C


@contextlib.contextmanager
def handled(
    handler: Callable[[int, FrameType | None], object], numbers: Collection[signal.Signals] = TO_STOP
) -> Generator[None]:
    """These signals go to `handler` for the duration of the block. Main thread only."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
