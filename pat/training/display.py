"""What rank 0 shows: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from pat.common.text import duration
from pat.schema import Config, TrainConfig

NARROW = 110  # columns of a terminal; in fewer a bar says less, so that the time that is left is whole
SILENT_S = 30.0  # without a line of a cut
SOON_S = 5.0  # a walk over layers that ends sooner needs no further lines
LEFT = 23  # columns of "left 0:00:00 and a cut"


class Silent:
    """Puts nothing on the terminal: what the loop calls of a view, for others to override."""

    def start(self, step: int, cuts: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def layer(self, what: str, index: int, number: int, step: int, left_s: float | None) -> None: ...

    def close(self) -> None: ...


class Remaining:
    """How long a run will still take, by what its steps, evaluations, saves and cuts have taken in this start."""

    def __init__(self, train: TrainConfig, until: int | str = "end") -> None:
        self.train, self.end = train, until if isinstance(until, int) else train.num_steps
        self.step, self.steps, self.step_s = 0, 0, 0.0  # where the last line was; steps timed, and their seconds
        self.evaluations: list[float] = []  # seconds each
        self.saves: list[float] = []
        self.cuts = 0  # calibrated ones that this start will do
        self.calibrations: list[float] = []

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Take the times of a line."""
        if values.get("train/step_seconds"):
            done = step - self.step
            self.steps, self.step_s, self.step = (
                self.steps + done,
                self.step_s + done * values["train/step_seconds"],
                step,
            )
        for name, seconds in values.items():
            if name.endswith("/seconds"):
                special = {"checkpoint/seconds": self.saves, "calibration/seconds": self.calibrations}
                special.get(name, self.evaluations).append(seconds)

    def seconds(self, step: int) -> float:
        """Until the end; evaluations, saves and cuts count once one of them has been timed."""
        train, left = self.train, max(0, self.end - step)
        training_s = left * self.step_s / max(1, self.steps)
        saves = _due(step, self.end, train.checkpoint_every)
        if train.checkpoint_every_minutes is not None:
            saves += int(training_s / (60 * train.checkpoint_every_minutes))
        evaluations = _due(step, self.end, train.eval_every)
        aside_s = saves * _mean(self.saves) + self.cuts_left * _mean(self.calibrations)
        return training_s + aside_s + evaluations * _mean(self.evaluations)

    @property
    def cuts_left(self) -> int:
        """Cuts on calibration samples that this start has still to make."""
        return max(0, self.cuts - len(self.calibrations))

    def in_words(self, step: int) -> str:
        """`0:01:20`, and what nothing is known of yet: ` and 2 cuts`."""
        number = 0 if self.calibrations else self.cuts_left
        cuts = f" and {'a cut' if number == 1 else f'{number} cuts'}" if number else ""
        return duration(self.seconds(step)) + cuts


def _due(step: int, end: int, every: int | None) -> int:
    """How often something is still done after `step`, if it is done every N steps and at the end."""
    return 1 + ((end - 1) // every - step // every if every and step < end else 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


class Lines(Silent):
    """A line per logged step, also into this rank's log."""

    def __init__(self, train: TrainConfig, until: int | str) -> None:
        self.num_steps = train.num_steps
        self.remaining = Remaining(train, until)
        self.said = 0.0  # when the last line of a cut was

    def start(self, step: int, cuts: int) -> None:
        self.remaining.step, self.remaining.cuts = step, cuts + len(self.remaining.calibrations)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.remaining.log(values, step)
        self._print(self._line(values, step))

    def layer(self, what: str, index: int, number: int, step: int, left_s: float | None) -> None:
        """A calibrated cut begins with a layer, or has ended (index = number): four lines of all layers, more of one
        that takes minutes, or fewer of one that is over soon."""
        soon, now = left_s is not None and left_s < SOON_S, time.monotonic()
        due = index % max(1, number // 4) == 0 or now - self.said >= SILENT_S
        if index < number and due and not soon:
            self.said = now
            at = f"step {step}: " if self.num_steps else ""
            left = "" if left_s is None else f", left {duration(left_s)}"
            self._print(f"{at}{what} {index + 1} of {number}{left}")

    def _print(self, line: str) -> None:
        print(line, flush=True)

    def _line(self, values: Mapping[str, Any], step: int) -> str:
        words = [f"step {step}/{self.num_steps}"]
        if "train/loss" in values:
            words += status(values)
            what = " to evaluate and save" if step == self.remaining.end else ""
            words.append(f"left {self.remaining.in_words(step)}{what}")
        else:
            words += [f"{key} {_number(value)}" for key, value in values.items() if not key.startswith("pruning/")]
        return "  ".join(words)


class Bar(Lines):
    """A progress bar on the terminal; the lines go into this rank's log."""

    def __init__(self, train: TrainConfig, until: int | str, title: str, terminal: Any) -> None:
        super().__init__(train, until)
        self.stdout: Any = sys.stdout
        self.rest = ""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # what is left of the terminal's width
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[status]}"),
            TextColumn("left {task.fields[left]}", table_column=Column(no_wrap=True, min_width=LEFT)),
            console=Console(file=terminal, force_terminal=True),
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self.title = title
        self.task: TaskID | None = None
        self.cut: TaskID | None = None  # while a calibrated cut goes through the layers

    def start(self, step: int, cuts: int) -> None:
        super().start(step, cuts)
        if self.task is None:
            self.task = self.bar.add_task(self.title, total=self.num_steps, completed=step, status="", left="-")
        self.bar.update(self.task, completed=step)  # an envelope has gone back
        if hasattr(self.stdout, "sink"):
            self.stdout.sink = self._above
        self.bar.start()

    def advance(self, step: int) -> None:
        if self.task is not None:
            self.bar.update(self.task, completed=step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.advance(step)
        self.remaining.log(values, step)
        if self.task is not None and "train/loss" in values:
            left = self.remaining.in_words(step)
            few = self.bar.console.width < NARROW
            self.bar.update(self.task, status=" ".join(status(values, few)), left=left)
        elif self.task is not None:
            self._above(self._line(values, step) + "\n")
        self._print(self._line(values, step))

    def layer(self, what: str, index: int, number: int, step: int, left_s: float | None) -> None:
        super().layer(what, index, number, step, left_s)
        if self.cut is None:
            self.cut = self.bar.add_task("layers", total=number, status="", left="-")
            self.bar.start()
        self.bar.update(self.cut, completed=index, left="-" if left_s is None else duration(left_s))
        if index == number:
            self.bar.remove_task(self.cut)
            self.cut = None

    def _print(self, line: str) -> None:
        log = getattr(self.stdout, "log", None)
        if log is not None:
            log.write(line + "\n")

    def _above(self, text: str) -> None:
        """Print whole lines above the bar."""
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
        return Bar(config.train, config.run.until, config.run.recipe or config.run.name, terminal)
    return Lines(config.train, config.run.until) if mode == "lines" else Silent()


def status(values: Mapping[str, Any], few: bool = False) -> list[str]:
    """Phase, sparsity and loss of a logged training step; unless only few words fit, also target, speed and memory."""
    words = []
    if values.get("pruning/phase"):
        words.append(f"{values['pruning/phase']}")
    if values.get("pruning/sparsity") is not None:
        now, target = values["pruning/sparsity"], values.get("pruning/target", values["pruning/sparsity"])
        # Learned gates are random until the hard phase: their mean follows the target, and the number of closed ones
        # lags.
        words.append(f"sparsity {now:.3f}" + (f" of {target:.3f}" if abs(now - target) > 0.0005 and not few else ""))
    words.append(f"loss {_number(values['train/loss'])}")
    if values.get("train/skipped_steps"):
        words.append(f"{values['train/skipped_steps']} skipped (no finite gradient)")
    if few:
        return words
    if values.get("train/tokens_per_s"):
        words.append(f"{values['train/tokens_per_s']:,.0f} tokens/s")
    if values.get("train/mfu") is not None:
        words.append(f"MFU {values['train/mfu']:.0%}".replace("%", " %"))
    if values.get("train/peak_memory_bytes"):
        words.append(f"{values['train/peak_memory_bytes'] / 2**30:.1f} GiB")
    return words


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
