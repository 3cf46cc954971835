"""What rank 0 shows: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from pat.config import Config


class Silent:
    """No terminal output."""

    def start(self, step: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


class Lines(Silent):
    """A line per logged step, also into this rank's log."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def start(self, step: int) -> None:
        self.first, self.began = step, time.monotonic()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._print(self._line(values, step))

    def _print(self, line: str) -> None:
        print(line, flush=True)

    def _line(self, values: Mapping[str, Any], step: int) -> str:
        parts = [f"step {step}/{self.num_steps}"]
        if "train/loss" in values:
            parts += status(values)
            per_step = (time.monotonic() - self.began) / max(1, step - self.first)
            parts.append(f"left {duration(per_step * (self.num_steps - step))}")
        else:
            parts += [f"{key} {_number(value)}" for key, value in values.items()]
        return "  ".join(parts)


class Bar(Lines):
    """A progress bar on the terminal; the lines go into this rank's log."""

    def __init__(self, num_steps: int, title: str, terminal: Any) -> None:
        super().__init__(num_steps)
        self.stdout: Any = sys.stdout
        self.rest = ""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # what is left of the terminal's width
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=Console(file=terminal, force_terminal=True),
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self.title = title
        self.task: TaskID | None = None

    def start(self, step: int) -> None:
        super().start(step)
        self.task = self.bar.add_task(self.title, total=self.num_steps, completed=step, status="")
        if hasattr(self.stdout, "sink"):
            self.stdout.sink = self._above
        self.bar.start()

    def advance(self, step: int) -> None:
        if self.task is not None:
            self.bar.update(self.task, completed=step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.advance(step)
        if self.task is not None and "train/loss" in values:
            self.bar.update(self.task, status=" ".join(status(values)))
        elif self.task is not None:
            self._above(self._line(values, step) + "\n")
        super().log(values, step)

    def _print(self, line: str) -> None:
        log = getattr(self.stdout, "log", None)
        if log is not None:
            log.write(line + "\n")

    def _above(self, text: str) -> None:
        """Whole lines above the bar."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self.bar.stop()
        if hasattr(self.stdout, "sink"):
            self.stdout.sink = self.stdout.terminal.write


def view_of(config: Config) -> Silent:
    """What `logger.progress` asks for."""
    mode = config.logger.progress
    terminal = getattr(sys.stdout, "terminal", sys.stdout)
    if mode == "auto":
        mode = "bar" if terminal.isatty() else "lines"
    if mode == "bar":
        return Bar(config.train.num_steps, config.run.recipe or config.run.name, terminal)
    return Lines(config.train.num_steps) if mode == "lines" else Silent()


def status(values: Mapping[str, Any]) -> list[str]:
    """Phase, sparsity, loss and speed of a logged training step."""
    parts = []
    if values.get("pruning/phase"):
        parts.append(f"{values['pruning/phase']}")
    if values.get("pruning/sparsity") is not None:
        now, target = values["pruning/sparsity"], values.get("pruning/target", values["pruning/sparsity"])
        # Learned gates are random until the hard phase: what they do on average follows the target, what is off lags.
        parts.append(f"sparsity {now:.3f}" + (f" of {target:.3f}" if abs(now - target) > 0.0005 else ""))
    parts.append(f"loss {_number(values['train/loss'])}")
    if values.get("train/skipped_steps"):
        parts.append(f"{values['train/skipped_steps']} skipped (no finite gradient)")
    if values.get("train/tokens_per_s"):
        parts.append(f"{values['train/tokens_per_s']:,.0f} tokens/s")
    if values.get("train/mfu") is not None:
        parts.append(f"MFU {values['train/mfu']:.0%}".replace("%", " %"))
    if values.get("train/peak_memory_bytes"):
        parts.append(f"{values['train/peak_memory_bytes'] / 2**30:.1f} GiB")
    return parts


def duration(seconds: float) -> str:
    """`1:02:03`."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
