"""When a checkpoint is due, and which one is the best."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from pat.config import Config
from pat.parts import Parts, Progress
from pat.tasks.classification import Classification


def parts(phase: str = "hard", **train: Any) -> Parts:
    config = Config()
    for key, value in train.items():
        setattr(config.train, key, value)
    pruner: Any = SimpleNamespace(pruners=[1], phase=lambda t: phase)
    nothing: Any = None
    return Parts(config, nothing, nothing, Classification(), nothing, nothing, nothing, pruner, nothing, nothing, 1)


def test_checkpoint_by_steps() -> None:
    made = parts(checkpoint_every=10)
    due = []
    for step in range(1, 31):
        made.progress.step = step
        due.append(made.checkpoint_due())
    assert [step for step, is_due in enumerate(due, 1) if is_due] == [10, 20, 30]


def test_checkpoint_by_minutes() -> None:
    made = parts(checkpoint_every_min=1.0)
    assert not made.checkpoint_due()
    made.last_save = time.monotonic() - 61
    assert made.checkpoint_due()


def test_best_counts_only_in_the_hard_phase() -> None:
    soft, hard = parts("soft"), parts("hard")
    assert not soft.is_best({"accuracy": 0.9, "loss": 0.1})
    assert hard.is_best({"accuracy": 0.7, "loss": 0.1})
    assert not hard.is_best({"accuracy": 0.6, "loss": 0.0})
    assert hard.is_best({"accuracy": 0.8, "loss": 9.0})
    by_loss = parts("hard", best_metric="loss")
    assert by_loss.is_best({"accuracy": 0.7, "loss": 0.5}) and by_loss.is_best({"accuracy": 0.1, "loss": 0.4})


def test_progress_survives_json() -> None:
    progress = Progress(step=3, best=[0.5], metrics={"loss": 1.0})
    assert Progress(**progress.as_dict()) == progress
