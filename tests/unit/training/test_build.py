"""When a checkpoint is due, and which one is the best."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pat import train
from pat.common.comm import LOCAL
from pat.schema import Config, TrainConfig
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


def test_a_checkpoint_before_a_calibrated_cut_comes_sooner() -> None:
    made = due()
    made.last_save = time.monotonic() - 61
    assert made.checkpoint(cut_next=True) and not made.checkpoint()
    made.saved()
    assert not made.checkpoint(cut_next=True), "little would be lost"
    made = due(checkpoint_every_minutes=None)
    made.last_save = time.monotonic() - 61
    assert not made.checkpoint(cut_next=True), "by steps only"


def test_best_counts_only_in_the_final_phase() -> None:
    made = due()
    assert not made.is_best({"accuracy": 0.9, "loss": 0.1}, final=False)
    assert made.is_best({"accuracy": 0.7, "loss": 0.1}, final=True)
    assert not made.is_best({"accuracy": 0.6, "loss": 0.0}, final=True)
    assert made.is_best({"accuracy": 0.8, "loss": 9.0}, final=True)
    assert not made.is_best({"accuracy": math.nan, "loss": math.nan}, final=True), "it has diverged"
    equal = due()
    kept = [equal.is_best({"accuracy": 1.0, "loss": loss}, final=True) for loss in (0.3, 0.1, 0.2, 0.1)]
    assert kept == [True, True, False, True], "of equal ones the lower loss, else the later: healing goes on"
    assert equal.progress.worse == 3, "patience is about the metric"
    equal.progress.best = [1.0]  # of an older checkpoint
    assert equal.is_best({"accuracy": 1.0, "loss": 9.0}, final=True)
    by_loss = due("loss", higher_is_better=False)
    assert by_loss.is_best({"accuracy": 0.7, "loss": 0.5}, True) and by_loss.is_best(
        {"accuracy": 0.1, "loss": 0.4}, True
    )


def test_a_kill_between_a_checkpoint_and_its_name_does_not_lose_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint itself says that it is the best; a start that has nothing left to do names it."""
    made, saved = due(eval_every=10), []
    made.progress.step = 10
    training: Any = SimpleNamespace(
        config=Config().changed(train__num_steps=100), run=SimpleNamespace(checkpoints=tmp_path),
        progress=made.progress, due=made, final_phase=True, guard=None, world=LOCAL,
        bound=SimpleNamespace(learned_nothing=lambda: None), tracker=SimpleNamespace(say=print, summary=print),
        pruner=SimpleNamespace(check_finished=lambda: None, totals=None, ended=lambda: None),
    )  # fmt: skip
    monkeypatch.setattr(train, "evaluate_now", lambda training: {"accuracy": 0.9})
    monkeypatch.setattr(train, "save", lambda training: saved.append(training.progress.as_dict()))
    train.evaluate_if_due(training)  # killed here
    for step in (5, 10):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "best").write_text("step-00000005")
    made.progress.restore(json.loads(json.dumps(saved[0])))
    made.progress.saved_step = made.progress.evaluated_step = 10
    for name in ("summary", "outcome"):
        monkeypatch.setattr(train.summary, name, lambda _: "")
    train.finish(training)
    assert (tmp_path / "best").read_text() == "step-00000010"


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
    "pruners, phase, hardened, final",
    [
        ([], "dense", True, True),
        ([1], "soft", False, False),
        ([1], "hard", True, True),
        ([1], "hard", False, False),
        ([1], "dense", False, False),
    ],
)
def test_the_final_phase_is_that_of_the_pruners(pruners: list[int], phase: str, hardened: bool, final: bool) -> None:
    """A run without pruners is final from its first step; a dense or soft model of one with pruners is not, nor one
    whose first hard step the optimizer has skipped."""
    pruner = SimpleNamespace(pruners=pruners, phase=lambda t: phase, hardened=hardened)
    assert Training.final_phase.fget(SimpleNamespace(pruner=pruner, progress=Progress())) is final  # type: ignore


def test_progress_survives_json() -> None:
    progress = Progress(step=3, best=[0.5], metrics={"loss": 1.0})
    again = Progress()
    again.restore(json.loads(json.dumps(progress.as_dict() | {"of_another_version": 1})))
    assert again == progress
