"""What a finished run is beside the envelope: its best checkpoint, which is what `pat export` and `pat gate` take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pat.checkpoint import retention
from pat.checkpoint.reader import read_manifest
from pat.common import files
from pat.envelope import limits
from pat.run.directory import RunDir
from pat.schema import Config
from pat.tasks import base


def judged(config: Config, run: RunDir) -> dict[str, Any]:
    """Plain values: sparsity, metrics, those of the dense model, the limits, and whether the run is inside."""
    summary: Any = files.read_json(run.summary)
    dense, metrics = summary["dense_metrics"], _metrics(run) or summary["metrics"]
    task = base.build(config.task)
    higher = {metric: task.higher_is_better(metric) for metric in config.envelope}
    found = limits.figures(config.envelope, dense, metrics, higher)
    return found | {
        "metrics": metrics,
        "dense_metrics": dense,
        "sparsity": summary["sparsity"],
        "train_seconds": summary["train_seconds"],
        "steps": summary["step"],
    }


def _metrics(run: RunDir) -> Mapping[str, float] | None:
    """Of the best checkpoint; None: a run of no steps has no best."""
    if not (run.checkpoints / "best").is_file():
        return None
    return read_manifest(retention.find_checkpoint(run, "best"))["metrics"]
