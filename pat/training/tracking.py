"""What a run reports while it runs: metrics.jsonl, summary.json, wandb, TensorBoard and the terminal. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from pat.common.files import write_atomic, write_json
from pat.common.wandb_key import has_api_key
from pat.run.directory import RunDir
from pat.schema import Config, LoggerConfig
from pat.training.display import view_of
from pat.training.tensorboard import TensorBoard

FINISH_TIMEOUT_S = 60.0  # for wandb's last upload


class Tracker:
    """The reporter of rank 0; on other ranks every method does nothing. No method waits for a device or a network."""

    def __init__(self, config: Config, run: RunDir, rank: int) -> None:
        self.active = rank == 0
        self.full = False
        self.config = config
        self.run = run
        if self.active:
            self.view = view_of(config)
            self.wandb = _Wandb(config, run, self.say)
            self.board = TensorBoard(config.logger, run, self.say)

    def start(self, step: int, logged_bytes: int | None = None, cuts: int = 0) -> None:
        """The run begins, or goes on from a checkpoint: forget what was logged after it. `cuts`: calibrated, ahead."""
        if self.active:
            keep_until(self.run, step, logged_bytes)
            self.file = open(self.run.metrics, "ab", buffering=0)  # noqa: SIM115
            self.wandb.start()
            self.board.start()
            self.view.start(step, cuts)

    def rewind(self, step: int, logged_bytes: int | None, cuts: int = 0) -> None:
        """The run goes back to a checkpoint: as if it had just gone on from there."""
        if self.active:
            self.file.close()
            keep_until(self.run, step, logged_bytes)
            self.file = open(self.run.metrics, "ab", buffering=0)  # noqa: SIM115
            self.board.start()
            self.view.start(step, cuts)

    def advance(self, step: int) -> None:
        """One more step is done."""
        if self.active:
            self.view.advance(step)

    def layer(self, what: str, index: int, number: int, step: int, left_s: float | None) -> None:
        """A calibrated cut begins with a layer, or has ended (index = number); `what` it does there."""
        if self.active:
            self.view.layer(what, index, number, step, left_s)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers (on the host) and words of one step."""
        if self.active:
            line = {"step": step, "time": round(time.time(), 3)} | {key: _plain(value) for key, value in values.items()}
            self._append(json.dumps(line).encode() + b"\n")
            self.wandb.log(values, step)
            self.board.log(line)
            self.view.log(values, step)

    def _append(self, line: bytes) -> None:
        """Append a whole line to metrics.jsonl, or none where the disk is full: then the next checkpoint ends the
        run."""
        size = self.file.tell()
        with contextlib.suppress(OSError):
            if self.file.write(line) == len(line):
                return
        self.file.truncate(size)
        self.file.seek(size)
        if not self.full:
            self.full = True
            self.say(f"{self.run.metrics} cannot be written: is the disk full? Lines will be missing")

    @property
    def logged_bytes(self) -> int:
        """Length of metrics.jsonl now; 0 on other ranks."""
        return self.file.tell() if self.active else 0

    def say(self, text: str) -> None:
        """A sentence, to the log and the terminal."""
        if self.active:
            print(text, flush=True)

    def alert(self, title: str, text: str) -> None:
        """A wandb alert, which mails or posts as its user chose."""
        if self.active:
            self.wandb.alert(title, text)

    def warn(self, title: str, text: str) -> None:
        """A sentence and an alert, for a problem that does not stop the run."""
        self.say(text)
        self.alert(title, text)

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's results: summary.json."""
        if self.active:
            write_json(self.run.summary, _plain(dict(values)))
            self.wandb.summary(values)

    def close(self, message: str = "") -> None:
        """The last call: leave the terminal as it was, and give wandb a minute to finish."""
        if self.active:
            self.view.close()
            self.file.close()
            self.board.close()
            self.wandb.close(message)


def keep_until(run: RunDir, step: int, size: int | None = None) -> None:
    """Drop from metrics.jsonl what is beyond its first `size` bytes, the lines of later steps, and torn ones.

    Without a size, a step of 0 drops all: nothing was saved. The size matters where a step has lines on both sides of
    a checkpoint.
    """
    if not run.metrics.exists():
        return
    kept = []
    for line in run.metrics.read_bytes()[:size].decode(errors="replace").splitlines():
        try:
            if (step > 0 or size is not None) and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomic(run.metrics, "".join(kept))


def wandb_mode(logger: LoggerConfig, environ: Mapping[str, str], has_key: bool) -> str:
    """The user's choice, else wandb's own variable, else online with an API key; never a mode that would ask."""
    mode = logger.mode or environ.get("WANDB_MODE") or ("online" if has_key else "offline")
    return "offline" if mode == "online" and not has_key else mode


class _Wandb:
    """wandb, or nothing. Errors here are logged once and never end a run."""

    def __init__(self, config: Config, run: RunDir, say: Callable[[str], None]) -> None:
        self.config, self.dir, self.say = config, run, say
        self.run: Any = None

    def start(self) -> None:
        if self.config.logger.name == "wandb":
            self._try(self._start)

    def _start(self) -> None:
        import wandb

        mode: Any = wandb_mode(self.config.logger, os.environ, has_api_key(os.environ))
        if mode == "offline" and self.config.logger.mode != "offline":
            self.say(f"wandb: offline; `wandb sync {self.dir.path}/wandb/offline-run-*` sends it later")
        if mode == "disabled":
            return
        identity = self.dir.wandb_id
        if not identity.exists():
            write_atomic(identity, uuid.uuid4().hex[:12])
        logger = self.config.logger
        self.run = wandb.init(
            project=logger.project,
            entity=logger.entity,
            group=logger.group,
            tags=logger.tags,
            name=self.config.run.name,
            id=identity.read_text(encoding="utf-8"),
            resume="allow",
            dir=self.dir.path,
            mode=mode,
            config=_config_values(self.config),
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )

    def log(self, values: Mapping[str, Any], step: int) -> None:
        single = {key: value for key, value in values.items() if not isinstance(value, list)}  # no curve of a list
        self._try(lambda: self.run.log(single | {"trainer/step": step}))

    def alert(self, title: str, text: str) -> None:
        self._try(lambda: self.run.alert(title=f"{self.config.run.name}: {title}", text=text))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._try(lambda: self.run.summary.update(_plain(dict(values))))

    def close(self, message: str) -> None:
        def finish() -> None:
            self._try(lambda: self.run.finish(exit_code=1 if message else 0))

        thread = threading.Thread(target=finish, name="wandb-finish", daemon=True)
        thread.start()
        thread.join(FINISH_TIMEOUT_S)

    def _try(self, call: Callable[[], Any]) -> None:
        if self.run is None and call != self._start:
            return
        try:
            call()
        except Exception as error:
            self.run = None
            self.say(
                f"wandb: {str(error).splitlines()[0] if str(error) else type(error).__name__}; going on without it"
            )


def _config_values(config: Config) -> dict[str, Any]:
    return config.plain()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
