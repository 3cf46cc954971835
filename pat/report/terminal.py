"""Runs on a terminal while they train: phase, step, sparsity, loss, time left; read-only, by textual."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Footer, Label, ProgressBar, Sparkline, Static

from pat.common import secrets
from pat.common.text import duration, plain
from pat.launch.status import ago, status
from pat.report import values
from pat.report.curves import thinned
from pat.report.sources import evaluated
from pat.report.values import mapping, number, text
from pat.run.directory import RunDir
from pat.schema import TrainConfig
from pat.training.display import Remaining

POINTS = 200  # of the curve
SHOWN = ("train/", "eval/", "dense/", "pruning/phase", "pruning/sparsity", "pruning/target", "checkpoint/seconds")


@dataclass
class Followed:
    """The lines of a metrics.jsonl that grows; read again from the start where the run has cut it."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    place: tuple[int, int] = (0, 0)  # inode, bytes that were read

    def read(self) -> Sequence[Mapping[str, Any]]:
        """All whole lines so far, with what is shown of them."""
        try:
            with open(self.path, "rb") as file:
                inode, size = (stat := self.path.stat()).st_ino, stat.st_size
                if inode != self.place[0] or size < self.place[1]:
                    self.lines, self.place = [], (inode, 0)
                file.seek(self.place[1])
                whole = file.read().rpartition(b"\n")[0]
        except OSError:
            return self.lines
        self.place = (inode, self.place[1] + (len(whole) + 1 if whole else 0))
        for line in whole.splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict) and number(content, "step") is not None:
                self.lines.append({k: v for k, v in content.items() if k in ("step", "time") or k.startswith(SHOWN)})
        return self.lines


@dataclass(frozen=True)
class View:
    """A run as it stands."""

    name: str
    state: str
    step: int
    num_steps: int | None
    phase: str
    sparsity: float | None
    target: float | None
    losses: Sequence[float]  # over the steps, thinned
    metrics: Mapping[str, float]  # of the last evaluation
    tokens_per_s: float | None
    left_s: float | None
    updated_s: float | None  # since 1970

    def facts(self, now_s: float) -> str:
        """The facts as lines."""
        of = f" of {self.num_steps:,}" if self.num_steps else ""
        left = "" if self.left_s is None else f"   left {duration(self.left_s)}"
        target = "" if self.target is None else f" (target {values.percent(self.target)})"
        speed = "" if self.tokens_per_s is None else f"   {self.tokens_per_s:,.0f} tokens/s"
        metrics = "   ".join(f"{name} {values.short(value)}" for name, value in self.metrics.items())
        lines = [
            f"{self.state}   logged {ago(self.updated_s, now_s)}",
            f"step {self.step:,}{of}   phase {self.phase or values.NONE}{left}{speed}",
            f"sparsity {values.percent(self.sparsity)}{target}",
            f"held out: {metrics or 'not evaluated yet'}",
        ]
        return plain(secrets.hide("\n".join(lines)))

    def loss(self) -> str:
        """The curve in words."""
        if not self.losses:
            return "no loss is logged yet"
        low, high = min(self.losses), max(self.losses)
        return f"loss {values.short(self.losses[-1])}   lowest {values.short(low)}, highest {values.short(high)}"


def view(run: Path, followed: Followed) -> View:
    """The current state of a run, from its files. ValueError where its config cannot be read."""
    try:
        config = yaml.safe_load(RunDir(run).config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {RunDir(run).config}: {str(error).splitlines()[0]}; give a run") from None
    lines, stands = followed.read(), status(run)
    step = max((int(line["step"]) for line in lines), default=0)
    last: dict[str, Any] = {}
    for line in lines[-200:]:
        last |= {name: value for name, value in line.items() if value is not None}
    losses = [(float(line["step"]), loss) for line in lines if (loss := number(line, "train/loss")) is not None]
    return View(
        name=text(config, "run.name") or run.name,
        state=stands.state,
        step=step,
        num_steps=stands.num_steps,
        phase=text(last, "pruning/phase"),
        sparsity=number(last, "pruning/sparsity"),
        target=number(last, "pruning/target"),
        losses=[loss for _, loss in thinned(losses, POINTS)],
        metrics=values.numbers(evaluated(lines, "eval/")),
        tokens_per_s=number(last, "train/tokens_per_s"),
        left_s=None if RunDir(run).exit.exists() else _left(config, lines, step),
        updated_s=stands.updated,
    )


def _left(config: Any, lines: Sequence[Mapping[str, Any]], step: int) -> float | None:
    """Seconds, as the run's own display estimates them; None before a step was timed."""
    try:
        until = mapping(config, "run").get("until", "end")
        remaining = Remaining(TrainConfig.model_validate(mapping(config, "train")), until)
    except ValueError:  # of another version of pat
        return None
    for line in lines:
        remaining.log(line, int(line["step"]))
    return remaining.seconds(step) if remaining.steps else None


class RunPanel(Vertical):
    """One run on the screen: facts, how far it is, and the curve of its loss."""

    DEFAULT_CSS = """
    RunPanel { height: auto; border: round $primary; padding: 0 1; margin-bottom: 1; }
    RunPanel Sparkline { height: 5; margin-top: 1; }
    RunPanel ProgressBar { margin: 1 0; }
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.path, self.followed = run, Followed(RunDir(run).metrics)

    def compose(self) -> ComposeResult:
        """Facts, how far it is, the loss."""
        yield Static(markup=False, classes="facts")
        yield ProgressBar(show_eta=False)
        yield Label(markup=False, classes="loss")
        yield Sparkline([], summary_function=lambda points: sum(points) / len(points))

    def on_mount(self) -> None:
        """Show the run's files as soon as textual has made the widgets."""
        self.show()

    def show(self) -> None:
        """Read the run's files again; keep the old state where they cannot be read just now."""
        try:
            found = view(self.path, self.followed)
        except ValueError:
            return
        self.border_title = Content(plain(secrets.hide(found.name)))  # no markup
        self.query_one(".facts", Static).update(found.facts(time.time()))
        self.query_one(ProgressBar).update(total=found.num_steps, progress=found.step)
        self.query_one(".loss", Label).update(found.loss())
        self.query_one(Sparkline).data = list(found.losses)


class Watch(App[None]):
    """All runs, one below the other."""

    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("ctrl+c", "quit", "Quit")]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, runs: Sequence[Path], every_s: float) -> None:
        super().__init__()
        self.runs, self.every_s = runs, every_s

    def compose(self) -> ComposeResult:
        """A panel for each run."""
        yield VerticalScroll(*map(RunPanel, self.runs))
        yield Footer()

    def on_mount(self) -> None:
        """Update every few seconds from now on."""
        self.set_interval(self.every_s, self.show)

    def show(self) -> None:
        """Bring every panel up to date."""
        for panel in self.query(RunPanel):
            panel.show()
