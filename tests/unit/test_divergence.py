"""When a run is stopped: skipped steps are counted and bounded, and so is the loss, by what it was before training."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pat import divergence
from pat.config import Config, DistillConfig
from pat.divergence import Diverged
from pat.parts import Progress
from tests.unit.test_build import parts


def config(**train: Any) -> Config:
    made = Config()
    made.train.num_steps = 1000
    for key, value in train.items():
        setattr(made.train, key, value)
    return made


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
    made = config()
    made.engine.dtype = dtype
    with pytest.raises(Diverged, match="11 of the last 11"):
        run_of(made, "x" * 18)
    made.engine.dtype = "fp16"
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
    ("max_loss", "initial", "chance", "limit"),
    [
        (None, 2.2, math.log(8), 6.6),  # the loss that the issue saw was 18.9, and passed
        (None, 0.1, math.log(8), 3 * math.log(8)),  # already trained: chance counts
        (None, None, math.log(8), 3 * math.log(8)),
        (5.0, 2.2, math.log(8), 5.0),
    ],
)
def test_loss_limit(max_loss: float | None, initial: float | None, chance: float, limit: float) -> None:
    assert divergence.loss_limit(config(max_loss=max_loss), initial, chance) == pytest.approx(limit)


def test_bad() -> None:
    assert all(divergence.is_bad(loss, 6.0) for loss in (math.nan, math.inf, 18.9))
    assert not divergence.is_bad(5.9, 6.0)


def test_a_teachers_hidden_states_ramp_in_before_the_bound_holds() -> None:
    made = config()
    made.distill = DistillConfig(teacher="x", weight=0.5, start=10, end=50)
    assert divergence.bounded_from(made) == 0  # KL and task loss are of one size
    made.distill.hidden_weight = 1.0
    assert divergence.bounded_from(made) == 50


def test_chance_is_of_classes_or_of_the_vocabulary() -> None:
    from transformers import BertConfig, LlamaConfig

    from pat import tasks

    classes: Any = BertConfig()
    classes.num_labels = 8
    assert tasks.build({"name": "classification"}).chance_loss(classes) == pytest.approx(math.log(8))
    assert tasks.build({"name": "causal_lm"}).chance_loss(LlamaConfig(vocab_size=320)) == pytest.approx(math.log(320))


def test_a_metric_that_the_task_lacks_is_refused_when_the_config_is_composed(monkeypatch: Any, tmp_path: Any) -> None:
    """It trained to the end, failed there, and the run was lost."""
    from tests.unit.test_compose import composed, refused

    monkeypatch.chdir(tmp_path)
    said = refused("recipe=parity", "train.best_metric=f1")
    assert "train.best_metric=f1" in said and "allowed are loss, perplexity" in said
    assert composed("recipe=parity", "train.best_metric=perplexity").train.best_metric == "perplexity"
    assert "accuracy" in refused("recipe=parity", "task=classification", "train.best_metric=perplexity")
    assert "of the last 50 steps" in refused("recipe=parity", "train.max_skipped=50")


def test_a_metric_that_a_task_declares_is_one_that_it_gives() -> None:
    made = parts("hard", best_metric="loss")
    assert made.is_best({"accuracy": 0.5, "loss": 1.0})
