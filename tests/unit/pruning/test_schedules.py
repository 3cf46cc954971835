"""Ramps, phases and selection steps as pure functions of the step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pat.pruning import registry
from pat.pruning.schedules import Timeline

EXTRA = {"stepwise": {"num_levels": 4}}
RAMPS = [name for name in registry.names("schedule") if name != "one_shot"]


def timeline(name: str = "linear", num_steps: int = 100, **fields: object) -> Timeline:
    given_ = {"name": name, "start": 10, "end": 60, **EXTRA.get(name, {}), **fields}
    return registry.build("schedule", given_).resolve(num_steps)


@pytest.mark.parametrize("name", registry.names("schedule"))
@settings(max_examples=200)
@given(
    num_steps=st.integers(1, 60),
    cuts=st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted),
    every=st.integers(1, 9),
    final=st.floats(0, 0.999),
    share=st.floats(0, 1),
)
def test_contract(name: str, num_steps: int, cuts: list[float], every: int, final: float, share: float) -> None:
    start, end, hard = cuts
    initial = final * share
    line = timeline(name, num_steps, start=start, end=end, hard_from=hard, select_every=every, initial=initial)
    steps = range(num_steps)
    assert 0 <= line.start <= line.end <= line.hard_from < num_steps
    targets = [line.target(t, final) for t in steps]
    assert targets == sorted(targets)
    assert all(target == 0.0 for target in targets[: line.start])
    assert all(initial <= target <= final for target in targets[line.start :])
    assert all(target == final for target in targets[line.end :])
    phases = [line.phase(t) for t in steps]
    assert phases == sorted(phases, key=["dense", "soft", "hard"].index)
    assert phases.count("dense") == line.start and phases.count("hard") == num_steps - line.hard_from
    assert all(line.phase(t) == "soft" or t == line.hard_from for t in steps if line.is_selection_step(t))
    assert (
        line.is_selection_step(line.start)
        and line.is_selection_step(line.end)
        and line.is_selection_step(line.hard_from)
    )
    progress = [line.progress(t) for t in steps]
    assert progress == sorted(progress) and all(0.0 <= p <= 1.0 for p in progress)
    assert line.progress(line.end) == 1.0


def test_selection_steps() -> None:
    line = timeline(start=2, end=9, hard_from=12, select_every=3, num_steps=20)
    assert [t for t in range(20) if line.is_selection_step(t)] == [2, 5, 8, 9, 11, 12]


@pytest.mark.parametrize(
    ("name", "middle"),
    [("linear", 0.4), ("cubic", 0.8 - 0.8 / 8), ("exponential", 1 - 0.2**0.5), ("stepwise", 0.4), ("one_shot", 0.8)],
)
def test_half_way(name: str, middle: float) -> None:
    assert timeline(name).target(35, 0.8) == pytest.approx(middle)


@pytest.mark.parametrize(
    ("name", "middle"),
    [("linear", 0.5), ("cubic", 0.8 - 0.6 / 8), ("exponential", 1 - (0.8 * 0.2) ** 0.5), ("stepwise", 0.5)],
)
def test_half_way_from_where_it_starts(name: str, middle: float) -> None:
    line = timeline(name, initial=0.2)
    assert line.target(10, 0.8) == pytest.approx(0.2) and line.target(35, 0.8) == pytest.approx(middle)


def test_stepwise_jumps() -> None:
    line = timeline("stepwise", start=0, end=10, num_levels=10)
    assert [line.target(t, 0.5) for t in range(11)] == pytest.approx([0.05 * t for t in range(11)])
    line = timeline("stepwise", start=0, end=8, num_levels=2)
    assert [line.target(t, 0.5) for t in range(9)] == [0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25, 0.5]


def test_one_shot_needs_no_end() -> None:
    line = registry.build("schedule", {"name": "one_shot", "start": 3}).resolve(10)
    assert (line.start, line.end, line.hard_from) == (3, 3, 3)
    assert [line.target(t, 0.5) for t in (2, 3)] == [0.0, 0.5]
    assert line.phase(2) == "dense" and line.phase(3) == "hard"


def test_fractions_and_steps() -> None:
    assert timeline(start=0.1, end=0.29, num_steps=100).end == 29
    assert timeline(start=1, end=1.0, num_steps=50).end == 49
    assert timeline(start=0.0, end=0.6, num_steps=2).hard_from == 1
    assert [timeline(select_every=every, num_steps=100).select_every for every in (3, 0.1, 0.001)] == [3, 10, 1]


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"end": 100}, "schedule.end is step 100, outside the run's steps 0 to 99"),
        ({"start": -1}, "schedule.start is step -1, outside"),
        ({"start": 70}, "ends at step 60, before it starts at step 70"),
        ({"hard_from": 50}, "permanent at step 50, before the schedule ends at step 60"),
        ({"hard_from": 100}, "schedule.hard_from is step 100, outside"),
        ({"end": 1.5}, "schedule.end is 1.5, but must be a whole number"),
        ({"end": None}, "schedule.end is null, but a"),
        ({"select_every": 0}, "schedule.select_every is 0"),
        ({"select_every": 0.0}, "schedule.select_every is 0.0"),
        ({"select_every": 1.5}, "schedule.select_every is 1.5"),
        ({"initial": 1.0}, "schedule.initial is 1.0"),
    ],
)
def test_refusals(name: str, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        timeline(name, **fields)  # type: ignore[arg-type]


def test_initial_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule.initial is 0.5, above the budget's 0.3"):
        timeline(initial=0.5).target(0, 0.3)


@pytest.mark.parametrize("name", registry.names("schedule"))
def test_a_run_of_no_steps_prunes_all_at_once(name: str) -> None:
    for start, end in ((0, None), (0.1, 0.6), (20, 60)):
        fields = {"end": 0.6 if end is None else end} if registry.classes("schedule")[name].needs_end else {"end": None}
        line = registry.build(
            "schedule", {**({"num_levels": 3} if name == "stepwise" else {}), "name": name, "start": start, **fields}
        ).resolve(0)
        assert (line.start, line.end, line.hard_from) == (0, 0, 0) and line.phase(0) == "hard"
        assert line.is_selection_step(0) and line.target(0, 0.7) == 0.7
