"""metrics.jsonl as TensorBoard's events, in RUN/tensorboard. Rank 0 only.

metrics.jsonl is authoritative: when a start or a return to a checkpoint cuts it, events are written anew from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pat.run.directory import RunDir
from pat.schema import LoggerConfig

NAME = "tensorboard"
FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.*"
NO_CURVES = ("step", "time")  # of a line: where its values are


def check_installed(logger: LoggerConfig) -> None:
    """ValueError where the logger is TensorBoard and its package is missing."""
    if logger.name == NAME and find_spec("tensorboard") is None:
        raise ValueError(
            f"logger.name={NAME} needs TensorBoard: pip install 'pat-deepspeed[tensorboard]', or take logger=none"
        )


class TensorBoard:
    """The events of a run, or nothing. Errors here are logged once and never end a run."""

    def __init__(self, logger: LoggerConfig, run: RunDir, say: Callable[[str], None]) -> None:
        self.wanted, self.run, self.say = logger.name == NAME, run, say
        self.writer: Any = None

    def start(self) -> None:
        """Events of the lines that metrics.jsonl has now, and of no others."""
        if self.wanted:
            self.close()
            self._try(self._start)

    def log(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl."""
        if self.writer is not None:
            self._try(lambda: self._add(line))

    def close(self) -> None:
        """Everything is on disk."""
        if self.writer is not None:
            self._try(self.writer.close)
            self.writer = None

    def _start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run.path / FOLDER
        for events in folder.glob(EVENTS):
            events.unlink()
        # purge_step makes a TensorBoard that has read the earlier files forget them.
        self.writer = SummaryWriter(str(folder), purge_step=0)
        for line in _lines(self.run.metrics):
            self._add(line)
        self.writer.flush()

    def _add(self, line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and name not in NO_CURVES and math.isfinite(value):
                self.writer.add_scalar(name, value, line["step"], walltime=line.get("time"))

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self.writer = None
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.say(f"TensorBoard: {said}; going on without it")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines, as `keep_until` leaves them."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
