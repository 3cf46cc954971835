"""Metrics over any of the samples, each as often as it is named: against numpy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pat.envelope import judge, spec
from pat.envelope.judge import Evidence, Quantity
from pat.evaluation import fitting
from pat.evaluation.measures import Measure, difference, estimate, of_mean, of_rows, ratio
from pat.evaluation.samples import Rows
from pat.schema import Config, EngineConfig, TrainConfig
from pat.tasks import base

PLACES = np.array([4, 0, 0, 7, 2, 2, 2, 9])


def rows_of(name: str, rows: torch.Tensor, labels: torch.Tensor | None) -> Rows:
    slices = [("half=a",) if i < 5 else ("half=b",) for i in range(len(rows))]
    return Rows(base.build({"name": name}), "d", list(range(3, 3 + len(rows))), rows, labels, slices)


def test_metrics_are_those_of_the_named_samples() -> None:
    """Fails if a sample that is drawn twice counts once, or numbers of samples are taken for places."""
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=10), rng.normal(size=10)
    regression = rows_of("regression", torch.tensor(p)[:, None].float(), torch.tensor(y).float())
    found = regression.metrics(PLACES)
    assert found["mse"] == pytest.approx(((p - y)[PLACES] ** 2).mean(), rel=1e-5)
    assert found["pearson"] == pytest.approx(np.corrcoef(p[PLACES], y[PLACES])[0, 1], rel=1e-5)
    losses, tokens = rng.uniform(1.0, 9.0, 10), rng.integers(1, 9, 10)
    texts = rows_of("causal_lm", torch.tensor(np.stack([losses, tokens], 1)), None)
    expected = losses[PLACES].sum() / tokens[PLACES].sum()
    assert texts.metrics(PLACES) == pytest.approx({"loss": expected, "perplexity": math.exp(expected)})
    measured = of_rows(texts)
    assert measured.measures["loss"].of(PLACES) == pytest.approx(expected)
    assert measured.measures["loss"].places(measured.slices["half=b"]).tolist() == [5, 6, 7, 8, 9]
    classes = rows_of("classification", torch.tensor(rng.normal(size=(10, 3))).float(), torch.arange(10) % 3)
    assert of_rows(classes).measures.keys() == {*classes.metrics(), "calibration_error"}
    for name, figure in classes.metrics(PLACES).items():
        assert of_rows(classes).measures[name].of(PLACES) == pytest.approx(figure, rel=1e-6), name


@pytest.mark.slow
def test_the_interval_of_a_mean_over_many_classes_holds_it() -> None:
    """Fails if resamples, which are lower where classes have two samples, decide alone; or an F1 may be above 1."""
    rng = np.random.default_rng(0)

    def macro_f1(classes: int, each: int, share: float) -> Measure:
        labels = torch.arange(classes).repeat(each)
        right = torch.tensor(rng.random(len(labels)) < share)
        answers = torch.where(right, labels, torch.tensor(rng.integers(0, classes, len(labels))))
        logits = torch.nn.functional.one_hot(answers, classes).float()
        return of_rows(rows_of("classification", logits, labels)).measures["macro_f1"]

    many = macro_f1(300, 2, 0.8)
    found = estimate(many, many.places())
    assert found.low is not None and found.high is not None
    assert 0.6 < found.low < found.value - 0.05 and found.value + 0.05 < found.high < 0.9
    a, b = macro_f1(3, 6, 0.4), macro_f1(3, 6, 0.99)
    assert estimate(b, b.places()).high == 1.0
    for found in (difference(a, b, a.places()), ratio(a, b, a.places())):
        assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_classes_that_are_all_right_are_no_certainty() -> None:
    """Fails if every resample is the same and its interval has no width: 1 to 1, or 0 to 0 of two such models."""
    labels = torch.arange(10) % 2
    rows = rows_of("classification", torch.nn.functional.one_hot(labels).float(), labels)
    accuracy, f1 = (of_rows(rows).measures[name] for name in ("accuracy", "macro_f1"))
    for figure in (estimate, lambda one, places: difference(one, one, places)):
        found = figure(f1, f1.places())
        assert found == figure(accuracy, accuracy.places()) and found.low is not None and found.low < found.value


def test_a_ratio_is_paired() -> None:
    """B's loss is always 0.1 nats above A's: the ratio of perplexities is e^0.1 in every resample."""
    rng = np.random.default_rng(1)
    losses, tokens = rng.uniform(1.0, 9.0, 30), np.full(30, 4.0)
    a, b = (
        of_rows(rows_of("causal_lm", torch.tensor(np.stack([losses + 4.0 * more, tokens], 1)), None)).measures
        for more in (0.0, 0.1)
    )
    places = a["perplexity"].places()
    found = ratio(a["perplexity"], b["perplexity"], places)
    assert (found.value, found.low, found.high) == pytest.approx((math.exp(0.1),) * 3)
    change = difference(a["loss"], b["loss"], places)
    assert (change.value, change.low, change.high) == pytest.approx((0.1,) * 3)


@pytest.mark.parametrize(("n", "right"), [(100, 5), (30, 2)])
def test_a_resample_of_which_nobody_gets_anything_right_is_no_loss(n: int, right: int) -> None:
    """Fails if the interval of a model beside itself has no numbers, so that `--confident` refuses a perfect copy."""
    outcomes, everyone = np.zeros(n), range(n)
    outcomes[:right] = 1.0
    a, half = (of_mean("accuracy", True, everyone, each, np.ones(n)) for each in (outcomes, outcomes.copy()))
    same = ratio(a, half, a.places())
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    assert half.values is not None
    half.values[0] = 0.0
    lost = ratio(a, half, a.places())
    assert lost.low is not None and lost.high is not None and 0.0 <= lost.low < lost.value < lost.high == 1.0
    for found, passed, certain in ((same, True, True), (lost, False, False)):
        quantity = Quantity(found.value, found.low, found.high)
        known = Evidence(Quantity(found.value * right / n), right / n, None, quantity, n)
        (check,) = judge.judge("accuracy[x=y]", spec.Limit(ratio=0.9), known, True, confident=True, of_slice=True)
        assert (check.passed, check.certain) == (passed, certain)


@pytest.mark.parametrize(
    ("train", "size"),
    [({"micro_batch_size": 2}, 2), ({"micro_batch_size": 2, "eval_batch_size": 5}, 5), ({}, 4)],
)
def test_a_forward_has_as_many_sequences_as_in_training(
    train: dict[str, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole global batch, hundreds of sequences, would not fit."""
    settings: dict[str, Any] = {"global_batch_size": 8, "num_steps": 1, **train}
    config = Config(train=TrainConfig(**settings), engine=EngineConfig(world_size=2))
    seen = list[int]()
    monkeypatch.setattr(fitting.sampler, "eval_batches", lambda *given: seen.append(given[3].train.eval_batch_size))
    fitting.eval_batches(config, SimpleNamespace(eval=None), None, None, [], "cpu")  # type: ignore[arg-type]
    assert seen == [size]
