"""The state of runs, from the files in their directories and from Slurm; read-only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pat.common.files import read_json
from pat.launch import slurm
from pat.launch.process import held_since, rank_records
from pat.run import provenance
from pat.run.directory import AT_STEP, HOST, RunDir, no_run, read_exit

LOGGED = "logged_step"
_BLOCK = 1 << 16  # bytes of metrics.jsonl read at a time, from its end


@dataclass(frozen=True)
class Status:
    """A run in a line."""

    run: Path
    state: str  # how it ended, or what it is doing; and the state of its job, if it has one
    step: int
    num_steps: int | None
    phase: str | None  # or how far a calibrated cut has come
    sparsity: float | None
    logged_step: int  # that phase and sparsity are of
    restarts: int  # starts after the first
    updated: float | None  # seconds since the epoch: the last line logged, or exit

    @property
    def is_older(self) -> bool:
        """Whether steps have been saved since phase and sparsity were logged."""
        return self.sparsity is not None and self.logged_step < self.step


def statuses(runs: Sequence[Path]) -> list[Status]:
    """The status of each run directory; ValueError for another directory."""
    for run in runs:
        if not RunDir(run).config.exists():
            raise no_run(run)
    jobs = {run: (read_json(RunDir(run).job) or {}).get("job_id") for run in runs}
    known = slurm.states([job for job in jobs.values() if job])
    return [status(run, known.get(jobs[run] or "")) for run in runs]


def status(run: Path, job_state: str | None = None) -> Status:
    """The status of one run, whose Slurm job is in this state."""
    directory = RunDir(run)
    exit_ = read_exit(run)
    seen = last_values(directory.metrics, ("step", "time", "pruning/phase", "pruning/sparsity"))
    times = [item for item in (seen.get("time"), (exit_ or {}).get("time")) if item]
    begun = provenance.read(run)
    return Status(
        run=run,
        state=_state(run, exit_, job_state),
        step=int(seen.get("step") or 0),
        num_steps=_num_steps(directory.config),
        phase=_cut(directory) or seen.get("pruning/phase"),
        sparsity=seen.get("pruning/sparsity"),
        logged_step=int(seen.get(LOGGED) or 0),
        restarts=max(0, len(begun) - 1),
        updated=max(times) if times else begun[-1]["time"] if begun else None,
    )


def _cut(directory: RunDir) -> str | None:
    """How many layers of a calibrated cut are done, where one has begun and not ended."""
    layers = [file.parent.name for file in directory.calibration.glob(f"*{AT_STEP}{'[0-9]' * 8}/layer-*.safetensors")]
    if not layers:
        return None
    newest = max(layers, key=_step_of)
    ended = last_values(directory.metrics, ("calibration/seconds",)).get(LOGGED)
    done = layers.count(newest)
    return f"cut, {done} layer{'s'[: done > 1]}" if ended is None or ended < _step_of(newest) else None


def _step_of(folder: str) -> int:
    return int(folder.rpartition(AT_STEP)[2])


def last_values(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The newest value of each key in a metrics.jsonl, read from its end; as LOGGED the step of the line that has the
    newest of the last key."""
    newest: dict[str, Any] = {}
    for line in _lines_from_the_end(path):
        try:
            values = json.loads(line)
        except ValueError:  # half written
            continue
        if keys[-1] in values and LOGGED not in newest:
            newest[LOGGED] = values.get("step")
        newest = {key: value for key, value in values.items() if key in keys and value is not None} | newest
        if newest.keys() >= set(keys):
            break
    return newest


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError:
        return
    with file:
        position, rest = file.seek(0, os.SEEK_END), b""
        while position:
            size = min(_BLOCK, position)
            position = file.seek(position - size)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            yield from (line for line in reversed(lines) if line)
        if rest:
            yield rest


def _state(run: Path, exit_: dict[str, Any] | None, job_state: str | None) -> str:
    if job_state == slurm.SILENT:
        return f"{exit_['meaning'] if exit_ else 'unknown'}, Slurm does not answer"
    forgotten = job_state == slurm.FORGOTTEN
    known = job_state if job_state and not forgotten else None
    job = known.lower() if known and (known not in slurm.OVER or not exit_) else None
    held = held_since(run)
    if exit_ and not (held and exit_["time"] < held):  # else a new start is not so far yet that it takes it away
        return exit_["meaning"] if not job or job == "running" else f"{exit_['meaning']}, job {job}"
    if job:
        return "running" if job == "running" else f"job {job}"
    records = rank_records(run)
    here = [record for record in records if record.process.host == HOST]
    if any(record.process.alive for record in here):
        return "running"
    if held:
        return "running" if records and not exit_ else "starting"
    job_id = (read_json(RunDir(run).job) or {}).get("job_id", "")
    elsewhere = [record for record in records if record not in here]
    over = forgotten and slurm.gone(RunDir(run), job_id, elsewhere)
    if elsewhere and not over:  # processes of another machine cannot be asked from here
        return f"unknown, last on {elsewhere[0].process.host}"
    return "died" if records or provenance.read(run) else "not started"


def _num_steps(config: Path) -> int | None:
    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))["train"]["num_steps"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None


def ago(then: float | None, now: float | None = None) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d` ago."""
    if then is None:
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
