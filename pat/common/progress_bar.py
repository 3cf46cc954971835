"""Progress of a long piece of work: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from pat.common.text import duration

EVERY_S = 30.0  # between two lines
PATIENCE_S = 3.0  # after which someone wonders what goes on

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(title: str, total: int, done: int = 0, every_s: float = EVERY_S) -> Iterator[Advance]:
    """Yields a function to call with the number of pieces done since the last call. `done` were there before."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )
        with Progress(*columns, console=Console(file=sys.stderr), expand=True) as bar:
            task = bar.add_task(title, total=total, completed=done)
            yield lambda count: bar.advance(task, count)
        return
    began = said = time.monotonic()
    first = done

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said >= every_s:
            said = now
            left = (now - began) / max(1, done - first) * (total - done)
            print(f"{title}: {done:,} of {total:,}, left {duration(left)}", file=sys.stderr, flush=True)

    yield advance


@contextlib.contextmanager
def said_if_slow(what: str, after_s: float = PATIENCE_S) -> Iterator[None]:
    """Says on stderr what is being done if it is not done soon: for work without pieces to count."""
    timer = threading.Timer(after_s, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
