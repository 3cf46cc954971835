"""Which steps the schedules of a held or stopped run count, against a loop that holds one by hand."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest

from pat.pruning.clock import Clock
from pat.pruning.schedules import Timeline
from pat.pruning.schedules.ramps import Cubic

STEPS = 60


def line(generator: random.Random) -> Timeline:
    start = generator.randrange(0, 20)
    end = start + generator.randrange(1, 20)
    hard, every = end + generator.randrange(0, 8), generator.randrange(1, 6)
    return Cubic(start=start, end=end, hard_from=hard, select_every=every).resolve(STEPS)


@pytest.mark.parametrize("seed", range(100))
def test_a_held_schedule_is_the_plain_one_without_the_steps_in_which_it_stood_still(seed: int) -> None:
    """Would catch: a step lost or counted twice at either end of a pause, a selection in a pause, a hard phase that
    begins while a schedule is held before it, and a stop that takes its target from a step without a selection."""
    generator = random.Random(seed)
    plain, clock = line(generator), Clock()
    held = replace(plain, clock=clock)
    stop = generator.randrange(plain.start, 2 * STEPS) if generator.random() < 0.5 else None
    holding, counted, chosen = False, -1, 0.0  # the oracle's: a step of the plain schedule, the target of the mask
    for t in range(STEPS):
        if t == stop:
            clock.stop(t)
            assert not clock.holds
        elif stop is None or t < stop:
            if generator.random() < 0.3:
                holding = not holding
                (clock.hold if holding else clock.go_on)(t)
        stopped = stop is not None and t >= stop
        if not holding and not stopped:
            counted += 1
            if plain.is_selection_step(counted):
                chosen = plain.target(counted, 0.8)
        assert clock.at(t) == counted
        assert held.is_selection_step(t) == (not holding and not stopped and plain.is_selection_step(counted))
        assert held.phase(t) == ("hard" if stopped else plain.phase(counted))
        assert held.target(t, 0.8) == (chosen if stopped else plain.target(counted, 0.8))
        again = Clock()
        again.restore(json.loads(json.dumps(asdict(clock))))
        assert again == clock
    for t in range(STEPS):  # what has been is not changed by what comes
        earlier = Clock()
        earlier.restore(asdict(clock))
        earlier.pauses = [pause for pause in earlier.pauses if pause[0] <= t]
        earlier.stopped = None if clock.stopped is None or clock.stopped > t else clock.stopped
        assert earlier.at(t) == clock.at(t)


def test_holding_twice_or_going_on_twice_changes_nothing() -> None:
    clock = Clock()
    clock.go_on(3)
    clock.hold(5)
    clock.hold(7)
    clock.go_on(9)
    clock.go_on(11)
    assert clock.pauses == [[5, 9]] and not clock.holds and [clock.at(t) for t in (4, 5, 8, 9)] == [4, 4, 4, 5]
