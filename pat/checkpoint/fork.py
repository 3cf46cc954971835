"""A run that begins where another one stands: `pat search` forks its candidates from one dense part.

A checkpoint before the first cut holds weights, moments and the evidence so far, and does not depend on how much will
be cut. A start in a directory that holds it goes on as after an interruption, under its own config, and ends with the
bits of a run that had that config from the start.
"""

from __future__ import annotations

import os
import shutil

from pat.checkpoint import retention
from pat.checkpoint.reader import read_manifest
from pat.common.files import write_atomic
from pat.run.directory import RunDir
from pat.zero.checkpoint_files import CheckpointError


def fork(source: RunDir, target: RunDir, step: int) -> None:
    """Give the run `target` the checkpoint of `step` of `source`, and the lines that were logged until then. Files are
    hard links where the file system has them: a checkpoint's are never written again. A run that has checkpoints of
    its own stays as it is."""
    if target.checkpoints.exists() and retention.steps(target.checkpoints):
        return
    folder = retention.of_step(source.checkpoints, step)
    logged = read_manifest(folder)["trainer"].get("logged_bytes") or 0
    whole = retention.of_step(target.checkpoints, step)
    partial = whole.with_name(f"{whole.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial, copy_function=_link)
    write_atomic(target.metrics, source.metrics.read_bytes()[:logged] if source.metrics.exists() else b"")
    retention.set_latest(target.checkpoints, whole)  # it points to nothing yet, which a start ignores
    os.replace(partial, whole)


def is_dense_part(run: RunDir, step: int) -> bool:
    """Whether a run.until=first_cut has ended at that step: saved, and the dense model's metrics with it."""
    try:
        return bool(read_manifest(retention.of_step(run.checkpoints, step))["trainer"].get("dense_metrics"))
    except CheckpointError:
        return False  # it is not there yet


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
