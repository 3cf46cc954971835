"""Throughput is that of training; the time left is that of all that is left."""

from __future__ import annotations

import io
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pat import train
from pat.common.text import duration
from pat.schema import Config, TrainConfig
from pat.training import hardware, metrics
from pat.training.display import Bar, Lines, Remaining
from pat.training.progress import Progress

PAUSE_S = 0.4


class World:
    """One rank."""

    rank, world_size = 0, 1

    def gather(self, item: Any) -> list[Any]:
        return [item]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def barrier(self) -> None: ...


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the loop works with, of one step that takes no time, and evaluations and saves that take PAUSE_S."""
    monkeypatch.setattr(hardware, "flops_per_token", lambda *_: 0.0)
    monkeypatch.setattr(train.store, "timed", lambda _: (time.sleep(PAUSE_S), PAUSE_S, 1))
    monkeypatch.setattr(train.retention, "mark", lambda *_: None)
    monkeypatch.setattr(train.retention, "retain", lambda *_: None)
    config = Config(train=TrainConfig(num_steps=10, global_batch_size=1, log_every=1))
    config = config.changed(optim__lr=1e-3, data__max_length=8)
    lines: list[dict[str, Any]] = []

    def slow(*_: Any) -> torch.Tensor:
        time.sleep(PAUSE_S)
        return torch.zeros(1)

    return SimpleNamespace(
        config=config,
        engine=SimpleNamespace(module=torch.nn.Linear(2, 2), device="cpu"),
        pruner=SimpleNamespace(
            cuts=(),
            peak_bytes=0,
            phase=lambda _: "dense",
            totals=SimpleNamespace(sparsity=0.0, target_now=lambda _: 0.0),
            saved=lambda: None,
        ),
        world=World(),
        progress=Progress(),
        tracker=SimpleNamespace(log=lambda line, step: lines.append(line), say=lambda text: None, logged_bytes=0),
        task=SimpleNamespace(evaluate=slow, metrics=lambda _: {"loss": 1.0}, details=lambda *_: None),
        feed=SimpleNamespace(eval_batches=lambda: iter(())),
        due=SimpleNamespace(saved=lambda: None),
        bound=SimpleNamespace(is_measured=False, refuse=lambda loss: None),
        objective=SimpleNamespace(logged=dict),
        run=SimpleNamespace(checkpoints=None),
        watchdog=SimpleNamespace(beat=lambda: None),
        aside_s=0.0,
        guard=None,
        slices=None,
        lines=lines,
    )


def test_throughput_leaves_evaluations_and_saves_out(training: Any) -> None:
    """Fails where a logged window, or the run's mean, counts the seconds of an evaluation or of a save."""
    counted, stats = (
        metrics.Window(training),
        SimpleNamespace(skipped=False, norm=None, sparsity={}, target={}, figures={}),
    )
    for step in (1, 2):
        counted.add(torch.tensor(1.0), {"input_ids": torch.zeros(1, 100)})
        training.progress.step = step
        counted.step(stats)
        train.evaluate(training)
        train.save(training)
        counted.log(stats)
    logged = [line for line in training.lines if "train/loss" in line]
    assert [line["train/step_seconds"] < PAUSE_S for line in logged] == [True, True]
    assert all(line["train/tokens_per_s"] > 100 / PAUSE_S for line in logged)
    assert training.progress.train_seconds < PAUSE_S and training.aside_s > 4 * PAUSE_S


def test_a_checkpoint_between_two_lines_counts_the_steps_before_it_once(training: Any) -> None:
    """Would catch tokens and seconds that a restart loses, and those that the next line counts again."""
    window, saved = metrics.Window(training), []
    stats = SimpleNamespace(skipped=False, norm=None, sparsity={}, target={}, figures={})
    for step in (1, 2, 3):
        window.add(torch.tensor(1.0), {"input_ids": torch.zeros(1, 100)})
        training.progress.step = step
        time.sleep(0.01)
        window.step(stats)
        train.save(training)
        saved.append((training.progress.tokens, round(training.progress.train_seconds, 2) >= 0.01 * step))
    window.log(stats)
    assert saved == [(100.0, True), (200.0, True), (300.0, True)]
    assert training.progress.tokens == 300.0 and training.progress.train_seconds < PAUSE_S


@pytest.mark.parametrize(
    "settings, step, seconds",
    [
        ({}, 0, 100 * 2.0 + 30.0 + 7.0),  # the last evaluation and the last save
        ({"eval_every": 10}, 50, 50 * 2.0 + 5 * 30.0 + 7.0),  # at 60, 70, 80, 90 and at the end
        ({"eval_every": 10}, 49, 51 * 2.0 + 6 * 30.0 + 7.0),
        ({"checkpoint_every": 25}, 50, 50 * 2.0 + 30.0 + 2 * 7.0),
        ({"checkpoint_every_minutes": 1.0}, 10, 90 * 2.0 + 30.0 + 4 * 7.0),  # one a minute of 180 s
        ({"eval_every": 1000}, 99, 2.0 + 30.0 + 7.0),
        ({"eval_every": 10}, 100, 30.0 + 7.0),
    ],
)
def test_time_left_counts_evaluations_and_saves(settings: dict[str, Any], step: int, seconds: float) -> None:
    left = Remaining(TrainConfig(num_steps=100, global_batch_size=1, **settings))
    left.log({"train/loss": 1.0, "train/step_seconds": 3.0}, 10)
    left.log({"train/loss": 1.0, "train/step_seconds": 1.0}, 20)
    left.log({"eval/loss": 1.0, "eval/seconds": 20.0}, 20)
    left.log({"dense/loss": 1.0, "dense/seconds": 40.0}, 20)
    left.log({"checkpoint/seconds": 7.0, "checkpoint/bytes": 1}, 20)
    left.cuts = 1
    assert left.in_words(step).endswith(" and a cut"), "nothing is known of how long it takes"
    left.log({"calibration/seconds": 500.0}, 20)
    assert left.seconds(step) == pytest.approx(seconds), "it is over and done"
    left.cuts = 3
    assert left.seconds(step) == pytest.approx(seconds + 1000.0)
    assert "cut" not in left.in_words(step)


def test_a_cut_is_four_lines_of_a_log_and_a_bar_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a cut of minutes shows nothing for minutes, or leaves its bar behind."""
    train, terminal = TrainConfig(num_steps=10), io.StringIO()
    lines, bar = Lines(train, "end"), Bar(train, "end", "decoder", terminal)
    bar.start(3, 1)
    for index in range(9):
        for view in (lines, bar):
            view.layer("calibrating and pruning layer", index, 8, 3, 5.0 * (8 - index) if index else None)
        assert (bar.cut is None) == (index == 8)
        if index == 5:
            (cut,) = [task for task in bar.bar.tasks if task.id == bar.cut]
            assert (cut.completed, cut.total, cut.fields["left"]) == (5, 8, "0:00:15")
            bar.bar.refresh()
    for index in range(9):
        lines.layer("taking the loss's gradients, layer", index, 8, 3, 0.5 * (8 - index) if index else None)
    bar.close()
    assert [task.description for task in bar.bar.tasks] == ["decoder"]
    assert "layers" in terminal.getvalue() and "5/8" in terminal.getvalue()
    assert capsys.readouterr().out.splitlines() == [
        "step 3: calibrating and pruning layer 1 of 8",
        "step 3: calibrating and pruning layer 3 of 8, left 0:00:30",
        "step 3: calibrating and pruning layer 5 of 8, left 0:00:20",
        "step 3: calibrating and pruning layer 7 of 8, left 0:00:10",
        "step 3: taking the loss's gradients, layer 1 of 8",
    ]


def test_a_bar_of_80_columns_says_how_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the figures before it push the time out of sight."""
    monkeypatch.setenv("COLUMNS", "80")
    terminal = io.StringIO()
    bar = Bar(TrainConfig(num_steps=120, global_batch_size=1), "end", "encoder", terminal)
    bar.start(3, 1)
    figures = {"train/loss": 0.04201, "train/step_seconds": 3.0, "train/tokens_per_s": 141.0, "pruning/phase": "dense"}
    bar.log(figures | {"pruning/sparsity": 0.158, "pruning/target": 0.271}, 30)
    bar.layer("layer", 1, 6, 30, 489.0)
    bar.bar.refresh()
    bar.close()
    said = terminal.getvalue()
    assert re.search(r"30/120\S* dense sparsity 0.158 loss 0.04201 *left 0:04:30 and a cut", said), said
    assert "layers" in said and "left 0:08:09" in said


def test_a_resumed_run_counts_its_own_steps() -> None:
    """Fails if the steps of an earlier start dilute the seconds of a step."""
    left = Remaining(TrainConfig(num_steps=100, global_batch_size=1, checkpoint_every_minutes=None))
    left.step = 50
    left.log({"train/step_seconds": 2.0}, 60)
    assert left.seconds(60) == pytest.approx(80.0) and duration(left.seconds(60)) == "0:01:20"


def test_a_run_that_is_to_stop_earlier_is_done_then() -> None:
    """Fails if the steps count that run.until leaves to a later start."""
    left = Remaining(TrainConfig(num_steps=100, global_batch_size=1, checkpoint_every_minutes=None), until=30)
    left.log({"train/step_seconds": 2.0}, 10)
    left.log({"eval/seconds": 5.0, "checkpoint/seconds": 1.0}, 10)
    assert left.seconds(10) == pytest.approx(20 * 2.0 + 5.0 + 1.0) and left.seconds(30) == pytest.approx(5.0 + 1.0)


def test_other_data_is_warned_of_and_other_labels_are_refused() -> None:
    """Would catch: a run that goes on with files that were changed, or whose third output is another label now."""
    ours = Progress(data=[["a", 9]], labels=["bad", "good"])
    assert ours.other_data({}) is None, "of an older version"
    assert ours.other_data({"data": [["a", 9]], "labels": ["bad", "good"]}) is None
    warning = ours.other_data({"data": [["b", 9]], "labels": ["bad", "good"]})
    assert warning is not None and "another order" in warning
    own = Progress(data=[["a", 9]], calibration="c")
    assert own.other_data({"data": [["a", 9]]}) is own.other_data(own.as_dict()) is None, "older ones do not say"
    warning = own.other_data({**own.as_dict(), "calibration": "d"})
    assert warning is not None and "data.calibration has other samples" in warning
    with pytest.raises(ValueError, match=r"other labels than the data has now \('bad', 'poor'\)"):
        ours.other_data({"data": [["b", 9]], "labels": ["good", "poor"]})
