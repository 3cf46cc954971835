"""When a run is stopped: skipped steps are counted and bounded, and so is the loss, by what it was before training."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytest import approx
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig

from pat.common.comm import LOCAL
from pat.pruning.schedules import Ramp
from pat.schema import Config, DistillConfig, TrainConfig
from pat.tasks import base
from pat.training import divergence
from pat.training.distill import Distiller
from pat.training.divergence import Diverged
from pat.training.metrics import Window
from pat.training.objective import Objective
from pat.training.progress import Progress
from tests.unit.config.test_compose import composed, refused
from tests.unit.training.test_build import due


def config(**train: Any) -> Config:
    settings: dict[str, Any] = {"num_steps": 1000} | train
    return Config(train=TrainConfig(**settings))


def run_of(made: Config, skipped: str, progress: Progress | None = None) -> Progress:
    """Steps in order: x is skipped, . is applied. Raises Diverged as the loop would."""
    progress = progress or Progress()
    for each in skipped:
        progress.step += 1
        if each == "x":
            divergence.note_skipped(made, progress)
    return progress


def test_twenty_of_thirty_skipped_steps_end_a_run() -> None:
    """Never more than two in a row: a limit on steps in a row sees nothing."""
    with pytest.raises(Diverged, match=r"11 of the last 16 steps .* at step 16: more than 10 \(train.max_skipped\)"):
        run_of(config(), "xx." * 10)


def test_skipped_steps_far_apart_are_counted_and_go_on() -> None:
    assert run_of(config(), ("x" + "." * 9) * 100).skipped == 100


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_only_fp16_may_skip_many_at_the_start(dtype: str) -> None:
    made = config().changed(engine__dtype=dtype)
    with pytest.raises(Diverged, match="11 of the last 11"):
        run_of(made, "x" * 18)
    made = made.changed(engine__dtype="fp16")
    progress = run_of(made, "x" * 18 + "." + "x" * 10)
    assert progress.skipped == 28
    with pytest.raises(Diverged, match="more than 10"):
        run_of(made, "x", progress)
    with pytest.raises(Diverged, match="all of the first 26 steps"):
        run_of(made, "x" * 26)


def test_the_count_goes_on_after_a_resume() -> None:
    """Ten skipped steps before a kill and one after it are eleven."""
    progress = Progress(**run_of(config(), "x" * 10).as_dict())
    with pytest.raises(Diverged, match="11 of the last 11"):
        run_of(config(), "x", progress)


def test_max_skipped_is_the_users() -> None:
    with pytest.raises(Diverged):
        run_of(config(max_skipped=0), "x")
    assert run_of(config(max_skipped=49), "x" * 49).skipped == 49


@pytest.mark.parametrize(
    ("task", "max_loss", "initial", "chance", "limit"),
    [
        ("classification", None, 2.2, math.log(8), 6.6),  # the loss that the issue saw was 18.9, and passed
        ("causal_lm", None, 0.1, math.log(8), 3 * math.log(8)),  # already trained: chance counts
        ("causal_lm", None, None, math.log(8), 3 * math.log(8)),
        ("causal_lm", 5.0, 2.2, math.log(8), 5.0),
        (
            "regression",
            None,
            0.3,
            0.08,
            30.0,
        ),  # one outlier of 600 rows: 75 times the variance
    ],
)
def test_loss_limit(task: str, max_loss: float | None, initial: float | None, chance: float, limit: float) -> None:
    worse = base.build({"name": task}).worse
    assert divergence.loss_limit(config(max_loss=max_loss), initial, chance, worse) == pytest.approx(limit)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.9), (2.0, 0.9), (4.0, 0.5), (0.5, 0.9)])
def test_a_taught_model_that_only_guesses_has_not_diverged(temperature: float, weight: float) -> None:
    """T^2 KL is up to T^2 ln C. Would catch: a strong cut under a sure teacher ended as diverged."""
    task = base.build({"name": "classification"})
    made = DistillConfig(teacher="t", weight=weight, temperature=temperature)
    distiller = Distiller(None, task, made, Ramp(0, 0), ())
    sure = (torch.tensor([200.0, -200.0], dtype=torch.float64) / temperature).log_softmax(-1)
    kl = float((sure.exp() * (sure - math.log(0.5))).sum())
    loss = (1 - weight) * math.log(2) + weight * temperature**2 * kl
    assert loss <= distiller.of_guessing * math.log(2) * (1 + 1e-9)


def test_bad() -> None:
    assert all(divergence.is_bad(loss, 6.0) for loss in (math.nan, math.inf, 18.9))
    assert not divergence.is_bad(5.9, 6.0)


class Line(dict[str, Any]):
    """Lines of the log, by step."""

    said: str = ""


def window_of(losses: list[float], skipped: str = "", log_every: int = 10) -> tuple[Line, Progress]:
    """A run of the loop's own window on a classifier of eight classes. Raises Diverged as the loop would."""
    shape = BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=30)
    shape.num_labels = 8
    made = config(log_every=log_every, num_steps=len(losses)).changed(data__max_length=8, optim__lr=0.1)
    lines, progress = Line(), Progress()
    engine = SimpleNamespace(module=BertForSequenceClassification(shape), device="cpu")
    totals = SimpleNamespace(sparsity=0.0, target_now=lambda target: 0.0)
    tracker: Any = SimpleNamespace(log=lambda line, step: lines.update({str(step): line}), warn=print)
    tracker.say = lambda text: setattr(lines, "said", lines.said + text)
    objective = Objective(engine, base.build({"name": "classification"}), LOCAL, global_mean=True)
    training: Any = SimpleNamespace(
        config=made, engine=engine, world=LOCAL, progress=progress, tracker=tracker, objective=objective, aside_s=0.0,
        pruner=SimpleNamespace(phase=lambda t: "hard", totals=totals, peak_bytes=0, cuts=()),
        bound=divergence.LossBound(made, progress, objective.chance(np.empty(0)), worse=3.0),
    )  # fmt: skip
    window = Window(training)
    for t, (loss, flag) in enumerate(zip(losses, skipped or "." * len(losses), strict=True)):
        window.add(torch.tensor(loss), {"input_ids": torch.zeros(2, 8)})
        progress.step = t + 1
        stats = SimpleNamespace(skipped=flag == "x", norm=None, target={}, sparsity={}, figures={})
        window.step(stats)
        if progress.step % log_every == 0:
            window.log(stats)
    return lines, progress


def test_a_run_that_explodes_before_its_first_line_is_stopped_there() -> None:
    """Ten times the first logged loss would let 18.9 pass for ever, where chance is 2.1."""
    with pytest.raises(Diverged, match=r"the loss is 17.2. at step 10, above 6.6 \(train.max_loss\)"):
        window_of([2.2, *[18.9] * 29])


def test_the_limit_is_said_before_anything_is_trained_and_kept() -> None:
    lines, progress = window_of([2.2, *[1.0] * 29])
    assert progress.initial_loss == pytest.approx(2.2)
    assert "loss before the first step 2.2; above 6.6 the run stops" in lines.said and lines.said.count("above") == 1
    assert lines.keys() == {"10", "20", "30"}


def test_skipped_steps_are_in_each_line_and_in_all() -> None:
    lines, progress = window_of([2.2] * 30, "x.........xx........" + "..........")
    counted = [(line["train/skipped_steps"], line["train/skipped_steps_total"]) for line in lines.values()]
    assert counted == [(1, 1), (2, 3), (0, 3)] and progress.skipped == 3
    with pytest.raises(Diverged, match="11 of the last 16 steps"):
        window_of([2.2] * 30, "xx." * 10)


def test_a_teachers_hidden_states_ramp_in_before_the_bound_holds() -> None:
    made = config().changed(distill=DistillConfig(teacher="x", weight=0.5, start=10, end=50))
    assert divergence.bounded_from(made) == 0  # KL and task loss are of one size
    assert divergence.bounded_from(made.changed(distill__hidden_weight=1.0)) == 50


@pytest.mark.parametrize("loss, warned", [(0.69, True), (9.0, True), (0.68, False)])
def test_a_model_at_the_loss_of_guessing_is_told(loss: float, warned: bool) -> None:
    """A run at four times the usable learning rate ended `done, accuracy 0.4967` without a hint."""
    for chance, teacher, expected in ((math.log(2), None, warned), (math.log(2), "t", False), (0.0, None, False)):
        made = config(max_loss=100.0).changed(distill__teacher=teacher)
        bound = divergence.LossBound(made, Progress(), chance, worse=3.0)
        assert bound.learned_nothing() is None
        bound.refuse(loss)
        assert bool(bound.learned_nothing()) is expected


def test_chance_is_what_guessing_costs_each_task() -> None:
    """A regression's was ln(vocabulary), and that of weighted classes that of equal ones."""
    shape: Any = BertConfig()
    shape.num_labels = 2
    labels, none = np.array([0, 0, 0, 1]), np.empty(0)
    assert base.build({"name": "causal_lm"}).chance_loss(LlamaConfig(vocab_size=320), none) == approx(math.log(320))
    assert base.build({"name": "classification"}).chance_loss(shape, labels) == approx(math.log(2))
    weighted = base.build({"name": "classification", "class_weights": [1.0, 9.0]}).fitted([3.0, 1.0])
    guess = weighted.loss_of(torch.zeros(4, 2), {"labels": torch.from_numpy(labels)})
    assert weighted.chance_loss(shape, labels) == approx(float(guess)) == approx(3 * math.log(2))
    regression, scores = base.build({"name": "regression"}), np.array([1.0, 2.0, 6.0])
    guess = regression.loss_of(torch.full((3, 1), 3.0), {"labels": torch.from_numpy(scores)})
    assert regression.chance_loss(shape, scores) == approx(float(guess)) == approx(14 / 3)


def test_a_metric_that_the_task_lacks_is_refused_when_the_config_is_composed(monkeypatch: Any, tmp_path: Any) -> None:
    """It trained to the end, failed there, and the run was lost."""
    monkeypatch.chdir(tmp_path)
    said = refused("recipe=parity", "train.best_metric=f1")
    assert "train.best_metric=f1" in said and "allowed are loss, perplexity" in said
    assert composed("recipe=parity", "train.best_metric=perplexity").train.best_metric == "perplexity"
    assert "accuracy" in refused("recipe=parity", "task=classification", "train.best_metric=perplexity")
    assert "only the last 50 steps are counted" in refused("recipe=parity", "train.max_skipped=50")


def test_a_metric_that_a_task_declares_is_one_that_it_gives() -> None:
    assert due("loss", higher_is_better=False).is_best({"accuracy": 0.5, "loss": 1.0}, final=True)
