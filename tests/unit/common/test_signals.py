"""The one list of signals, and the block in which a handler holds."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from pat.common import signals


def test_what_is_passed_on_stops_a_rank_and_handlers_come_back() -> None:
    assert set(signals.PASSED_ON.values()) <= set(signals.TO_STOP)
    assert set(signals.TO_STOP) - set(signals.BY_OTHERS) == {signal.SIGINT}
    before, heard = [signal.getsignal(number) for number in signals.TO_STOP], []
    with signals.handled(lambda number, _frame: heard.append(number)):
        for number in signals.TO_STOP:
            os.kill(os.getpid(), number)
    assert heard == [*signals.TO_STOP]
    assert [signal.getsignal(number) for number in signals.TO_STOP] == before


def test_no_other_file_lists_them(repository: Path) -> None:
    for path in (repository / "pat").rglob("*.py"):
        if path.name != "signals.py":
            assert not re.search(r"signal\.SIG\w+[,:] *signal\.SIG", path.read_text()), path
