"""When a checkpoint is due, and which one is the best."""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pat.schema import TrainConfig
from pat.training.due import Due
from pat.training.progress import Progress
from pat.training.state import Training


def due(metric: str = "accuracy", higher_is_better: bool = True, **train: Any) -> Due:
    return Due(TrainConfig(num_steps=100, global_batch_size=1, **train), Progress(), metric, higher_is_better)


def test_a_checkpoint_waits_for_a_step_that_was_not_skipped() -> None:
    made = due(checkpoint_every=10, checkpoint_every_minutes=1e-9)
    made.progress.step, made.progress.skipped_lately = 10, [10]
    assert not made.checkpoint()
    made.progress.step = 11
    assert made.checkpoint()
    made = due(checkpoint_every=10)
    made.progress.step, made.progress.skipped_lately = 11, [10]
    assert made.checkpoint()
    made.saved()
    made.progress.step = 12
    assert not made.checkpoint(), "the next is due at step 20"


def test_checkpoint_by_steps() -> None:
    made = due(checkpoint_every=10)
    found = []
    for step in range(1, 31):
        made.progress.step = step
        found.append(made.checkpoint())
        if found[-1]:
            made.saved()
    assert [step for step, is_due in enumerate(found, 1) if is_due] == [10, 20, 30]


def test_checkpoint_by_minutes() -> None:
    made = due(checkpoint_every_minutes=1.0)
    assert not made.checkpoint()
    made.last_save = time.monotonic() - 61
    assert made.checkpoint()


def test_best_counts_only_in_the_final_phase() -> None:
    made = due()
    assert not made.is_best({"accuracy": 0.9, "loss": 0.1}, final=False)
    assert made.is_best({"accuracy": 0.7, "loss": 0.1}, final=True)
    assert not made.is_best({"accuracy": 0.6, "loss": 0.0}, final=True)
    assert made.is_best({"accuracy": 0.8, "loss": 9.0}, final=True)
    assert not made.is_best({"accuracy": math.nan, "loss": math.nan}, final=True), "it has diverged"
    by_loss = due("loss", higher_is_better=False)
    assert by_loss.is_best({"accuracy": 0.7, "loss": 0.5}, True) and by_loss.is_best(
        {"accuracy": 0.1, "loss": 0.4}, True
    )


def test_patience_counts_evaluations_of_the_final_phase_since_the_best() -> None:
    """Would catch: a stop in the soft phase, which could not keep its sparsity, or a count that a resume forgets."""
    soft, hard, without = due(early_stopping_patience=2), due(early_stopping_patience=2), due()
    for made in (soft, hard, without):
        for accuracy in (0.5, 0.6, 0.6, 0.4):
            assert not made.early_stop()
            made.is_best({"accuracy": accuracy, "loss": 1.0}, final=made is not soft)
    assert [made.early_stop() for made in (soft, hard, without)] == [False, True, False]
    resumed = due(early_stopping_patience=2)
    resumed.progress.restore(hard.progress.as_dict())
    assert resumed.early_stop()
    resumed.is_best({"accuracy": 0.7, "loss": 1.0}, final=True)
    assert not resumed.early_stop()


@pytest.mark.parametrize(
    "pruners, phase, final", [([], "dense", True), ([1], "soft", False), ([1], "hard", True), ([1], "dense", False)]
)
def test_the_final_phase_is_that_of_the_pruners(pruners: list[int], phase: str, final: bool) -> None:
    """A run without pruners is final from its first step; a dense or soft model of one with pruners is not."""
    pruner = SimpleNamespace(pruners=pruners, phase=lambda t: phase)
    assert Training.final_phase.fget(SimpleNamespace(pruner=pruner, progress=Progress())) is final  # type: ignore


def test_progress_survives_json() -> None:
    progress = Progress(step=3, best=[0.5], metrics={"loss": 1.0})
    again = Progress()
    again.restore(json.loads(json.dumps(progress.as_dict() | {"of_another_version": 1})))
    assert again == progress
