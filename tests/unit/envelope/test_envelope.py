"""The envelope: what limits mean, and the mistakes one can make."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pat.envelope import judge, spec
from pat.envelope import limits as of_training
from pat.envelope.figures import figures
from pat.envelope.judge import Evidence, Quantity
from pat.tasks import base

LIMITS = {"accuracy": {"drop": 0.01, "min": 0.8}, "slices.min": 0.7, "slices.least": 3, "latency_p95.ratio": 0.7}


def test_the_figures_are_those_of_the_tasks(repository: Path) -> None:
    """Fails if a metric of a task cannot be limited, is limited the wrong way round, or is not in docs/gate.md."""
    assert set(figures()) <= set(re.findall(r"\w+", (repository / "docs" / "gate.md").read_text()))
    for task in base.classes().values():
        for name, higher in task.directions.items():
            assert figures()[name].higher_is_better == higher, name


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """Fails if a dotted key, or a limit of slices, is lost. A training reads the same from its config."""
    envelope = spec.parse(LIMITS)
    assert envelope.limits["accuracy"].bounds() == {"min": 0.8, "drop": 0.01}
    assert envelope.slices is not None and (envelope.slices.min, envelope.slices.least) == (0.7, 3)
    assert envelope.relative() == ["accuracy.drop", "latency_p95.ratio"]
    assert spec.parse(envelope.said()) == envelope == spec.parse(envelope)
    (tmp_path / "e.yaml").write_text("envelope:\n  accuracy: {drop: 0.01, min: 0.8}\n  slices.min: 0.7\n")
    merged = spec.merged(spec.read(tmp_path / "e.yaml"), {"accuracy": {"drop": 0.5}, "slices": {"least": 3}})
    assert merged == {"accuracy": {"drop": 0.5, "min": 0.8}, "slices": {"min": 0.7, "least": 3}}
    with pytest.raises(ValidationError):
        envelope.slices = None  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "the envelope is empty: give limits, as envelope.accuracy.drop=0.01"),
        ({"acuracy": {"drop": 0.1}}, "there is no figure 'acuracy' .*did you mean accuracy"),
        ({"accuracy": {"dorp": 0.1}}, "no key 'accuracy.dorp'; .*did you mean drop"),
        ({"accuracy": 0.9}, "accuracy is 0.9, but must be a mapping"),
        ({"accuracy": {}}, "accuracy: there is no limit"),
        ({"accuracy": {"drop": -1.0}}, "accuracy.drop is -1.0, but must be at least 0"),
        ({"accuracy": {"drop": 2.0}}, "accuracy.drop is 2, but must be less than 1, as shares are: 0.02 is 2 points"),
        ({"accuracy": {"drop": 1}}, "accuracy.drop is 1, but must be less than 1, as shares are: 0.01 is 1 point"),
        ({"passed": {"min": 90}}, "passed.min is 90, but must be at most 1, as shares are: 0.9"),
        ({"slices": {"drop": 3}}, "slices.drop is 3, but must be less than 1"),
        ({"accuracy": {"drop": math.nan}}, "accuracy.drop is not a number"),
        ({"accuracy": {"drop": "0.1"}}, "accuracy.drop is '0.1', but must be a number"),
        ({"accuracy": {"rise": 0.1}}, "of accuracy more is better, so give drop or ratio"),
        ({"perplexity": {"min": 1.0}}, "of perplexity less is better, so give max or ratio"),
        ({"slices": {"least": 5}}, "slices: there is no limit"),
        ({"slices.min": 0.5, "slices": {"min": 0.6}}, "slices is given twice"),
    ],
)
def test_mistakes(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        spec.parse(given)


@pytest.mark.parametrize(
    ("bound", "limit", "higher", "value", "passes"),
    [
        ("min", 0.9, True, 0.9, True),
        ("min", 0.9, True, 0.899, False),
        ("max", 2.0, False, 2.001, False),
        ("drop", 0.01, True, 0.79, True),  # 0.8 - 0.79 is a bit above 0.01 in floating point
        ("drop", 0.01, True, 0.789, False),
        ("drop", 0.01, True, 0.9, True),
        ("rise", 0.1, False, 0.91, False),
        ("rise", 0.1, False, 0.7, True),
        ("ratio", 1.05, False, 0.84, True),
        ("ratio", 1.05, False, 0.85, False),
        ("ratio", 0.95, True, 0.76, True),
        ("ratio", 0.95, True, 0.75, False),
        ("min", 0.9, True, math.nan, False),
        ("drop", 0.01, True, math.nan, False),
        ("ratio", 1.05, False, math.inf, False),
    ],
)
def test_each_bound_on_its_side(bound: str, limit: float, higher: bool, value: float, passes: bool) -> None:
    """Fails if a bound looks the other way, or what is not a number passes. The baseline is 0.8."""
    (check,) = judge.judge("x", spec.Limit.model_validate({bound: limit}), judge.evidence(value, 0.8), higher)
    assert check.passed == passes and check.name == f"x.{bound}" and check.baseline == 0.8


def test_confident_is_about_the_bad_end_of_the_interval() -> None:
    """Fails if the good end is looked at, or a drop's interval is that of the change with its ends as they are."""
    change = Quantity(-0.005, -0.02, 0.01)
    known = Evidence(Quantity(0.795, 0.7, 0.9), 0.8, change, Quantity(0.99, 0.97, 1.01))
    limits = spec.Limit(min=0.75, drop=0.015, ratio=0.96)
    by_figure = judge.judge("x", limits, known, True)
    assert [(check.passed, check.certain) for check in by_figure] == [(True, False), (True, False), (True, True)]
    low, drop, ratio = judge.judge("x", limits, known, True, confident=True)
    assert (low.passed, drop.passed, ratio.passed) == (False, False, True)
    assert drop.interval == (-0.01, 0.02) and drop.quantity == 0.005
    ends = [one.edge.rpartition("must be ")[2] for one in (low, drop, ratio)]
    assert ends == ["the lower end of its interval", "the upper end of its interval", ""]
    (outside,) = judge.judge("x", spec.Limit(drop=0.001), known, True, confident=True)
    assert not outside.passed and not outside.edge, "the figure itself is outside"
    assert not outside.certain, "and its interval reaches inside"
    with pytest.raises(ValueError, match="x.drop is against a baseline"):
        judge.judge("x", limits, judge.evidence(0.8), True)
    with pytest.raises(ValueError, match="the baseline's x is 0"):
        judge.judge("x", spec.Limit(ratio=1.0), judge.evidence(0.8, 0.0), True)
    with pytest.raises(ValueError, match="is -0.02, and a ratio is to something above 0"):
        judge.judge("x", spec.Limit(ratio=0.95), judge.evidence(-0.5, -0.02), True)


@pytest.mark.parametrize("value", [0.5, 0.99])
def test_nothing_is_certain_by_an_interval_whose_end_is_no_number(value: float) -> None:
    known = Evidence(Quantity(value), 1.0, None, Quantity(value, math.nan, math.nan), 20)
    (check,) = judge.judge("x", spec.Limit(ratio=0.9), known, True)
    assert check.passed == (value > 0.9) and not check.certain
    (check,) = judge.judge("x", spec.Limit(ratio=0.9), known, True, confident=True)
    assert not check.passed and not check.certain


def test_a_slice_of_which_the_baseline_has_nothing_cannot_get_worse() -> None:
    limit, known = spec.Limit(ratio=0.9), judge.evidence(0.0, 0.0)
    (check,) = judge.judge("accuracy[label=rare]", limit, known, True, of_slice=True)
    assert check.passed and check.baseline == 0.0
    (check,) = judge.judge("accuracy[label=rare]", limit, judge.evidence(0.2, 0.0), True, confident=True, of_slice=True)
    assert check.passed
    with pytest.raises(ValueError, match="a ratio is to something above 0"):
        judge.judge("loss[label=rare]", limit, known, False, of_slice=True)
    named = {"accuracy": limit, "accuracy[label=rare]": limit}
    dense = {"accuracy": 0.5, "accuracy[label=rare]": 0.0}
    found = of_training.figures(named, dense, dense, dict.fromkeys(named, True), ["accuracy[label=rare]"])
    assert found["inside"] and found["limits"]["accuracy[label=rare]"] == 0.0


@pytest.mark.parametrize(("units", "passed"), [(None, True), (2, True), (1, False)])
def test_copies_of_one_prompt_are_no_evidence(units: int | None, passed: bool) -> None:
    """Would catch: four copies of a prompt, which have no interval, taken for four prompts."""
    known = Evidence(Quantity(0.5), 0.4, Quantity(0.1), n=4, units=units)
    (check,) = judge.judge("x", spec.Limit(rise=0.2), known, False, confident=True)
    assert check.passed is passed
