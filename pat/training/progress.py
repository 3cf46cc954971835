"""What a resumed run must know besides weights and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pat.envelope.guard import Record
from pat.pruning.clock import Clock


@dataclass
class Progress:
    """Where a run stands. All of it is in every checkpoint."""

    step: int = 0  # optimizer steps done
    tokens: float = 0.0  # seen, over all ranks
    train_seconds: float = 0.0  # in steps alone
    calibration_seconds: float = 0.0  # in calibrated cuts
    dense_metrics: dict[str, float] | None = None  # just before the first mask
    dense_slices: dict[str, dict[str, float]] | None = None  # of the same evaluation, as `pat.training.slices` has them
    dense_step: int | None = None  # how many steps they were trained
    metrics: dict[str, float] | None = None  # of the last evaluation
    slices: dict[str, dict[str, float]] | None = None  # of the same
    details: dict[str, Any] | None = None  # of the same: further figures of the task
    best: list[float] | None = None  # of the best checkpoint: signed metric, and minus its loss, which older ones lack
    best_step: int | None = None  # the step of that checkpoint; older ones lack it
    worse: int = 0  # evaluations since then
    initial_loss: float | None = None  # before the first step
    skipped: int = 0  # steps without a finite gradient
    skipped_lately: list[int] = field(default_factory=list)  # the steps of those among the last few
    saved_step: int = -1
    evaluated_step: int = -1
    save_seconds: float = 0.0
    peak_pruner_bytes: int = 0
    logged_bytes: int | None = None  # of metrics.jsonl
    reached: dict[str, int] = field(default_factory=dict)  # of train.export_at: sparsity -> step
    base: dict[str, str] | None = None  # path and sha256 of the weights that the first start began with
    data: list[Any] | None = None  # of each source: the hash of its samples, how many of them are trained on
    calibration: str | None = None  # the hash of the samples of data.calibration
    labels: list[str] | None = None  # of a classifier, in the order of its outputs
    clock: Clock = field(default_factory=Clock)  # of the schedules: which steps they count
    envelope: Record = field(default_factory=Record)  # what it has seen and decided
    teacher: dict[str, str] | None = None  # path and sha256 of the weights that are distilled; of a cache, too

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return dataclasses.asdict(self)

    def other_data(self, saved: Mapping[str, Any]) -> str | None:
        """A warning where a checkpoint has seen other data than this start has. ValueError where its outputs are other
        labels."""
        before, now = saved.get("labels"), self.labels
        if before is not None and before != now:
            changed = ", ".join(map(repr, sorted({*before} ^ {*(now or ())}))) or "their order"
            raise ValueError(
                f"the checkpoint was trained on other labels than the data has now ({changed}), so its outputs would "
                "stand for other ones. Restore the files, or use another run.dir or run.resume=never"
            )
        if saved.get("data") not in (None, self.data):
            return (
                "the data is not what the checkpoint was trained on: samples come in another order from here on, some "
                "twice, some never. Restore the files to go on as before"
            )
        if saved.get("calibration") not in (None, self.calibration):
            return (
                "data.calibration has other samples than when the checkpoint was made: cuts from here on are "
                "calibrated on these. Restore its files to go on as before"
            )
        return None

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a manifest's values; keys that this version of pat does not know are ignored."""
        for each in dataclasses.fields(self):
            if each.name in ("clock", "envelope"):  # others hold the same list
                getattr(self, each.name).restore(saved.get(each.name) or {})
            elif each.name in saved:
                setattr(self, each.name, saved[each.name])
