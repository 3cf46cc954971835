"""When a checkpoint is due, and which one is the best."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from pat.parts import Parts, Progress
from pat.schema import Config
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


def test_patience_counts_evaluations_of_the_hard_phase_since_the_best() -> None:
    """Would catch: a stop in the soft phase, which could not keep its sparsity, or a count that a resume forgets."""
    soft, hard, without = parts("soft", early_stopping_patience=2), parts(early_stopping_patience=2), parts()
    for made in (soft, hard, without):
        for accuracy in (0.5, 0.6, 0.6, 0.4):
            assert not made.stops_early()
            made.is_best({"accuracy": accuracy, "loss": 1.0})
    assert [made.stops_early() for made in (soft, hard, without)] == [False, True, False]
    hard.progress = Progress(**hard.progress.as_dict())
    assert hard.stops_early()
    hard.is_best({"accuracy": 0.7, "loss": 1.0})
    assert not hard.stops_early()


def test_progress_survives_json() -> None:
    progress = Progress(step=3, best=[0.5], metrics={"loss": 1.0})
    assert Progress(**progress.as_dict()) == progress
