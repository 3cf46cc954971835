"""The guarded ramp on runs without a model: a quality that is a formula of the mask, and a loop that trains nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from pat.envelope import guard
from pat.envelope.guard import Look, decide
from pat.envelope.limits import figures
from pat.envelope.spec import Limit
from pat.pruning.schedules.ramps import Linear
from pat.schema import Config
from pat.training.guarded import Guard
from pat.training.progress import Progress

STEPS, EVERY, ASKED = 60, 5, 0.8
Curve = Callable[
    [float, int], float
]  # (sparsity, steps since the last cut) -> loss; the dense model's is 1, the limit 1.5


@dataclass
class Mask:
    """What stands for the model."""

    sparsity: float = 0.0
    cut_at: int = 0
    number: int = 0  # of the selection that made it


class Run:
    """The loop of pat.train, without a model: the mask is the last selection's."""

    limited, least, dimensions = "loss", None, None

    def __init__(self, curve: Curve, patience: int = 1, steps: int = STEPS, **ramp: Any) -> None:
        schedule: Any = {"start": 10, "end": 40, "select_every": 5} | ramp
        self.curve, self.progress, self.mask = curve, Progress(dense_metrics={"loss": 1.0}), Mask()
        self.line = replace(Linear(**schedule).resolve(steps), clock=self.progress.clock)
        self.steps, self.trained, self.selections = steps, 0, 0
        self.good: dict[int, Any] = {}  # step -> (progress, mask): the checkpoints
        self.actions: list[str] = []
        totals = SimpleNamespace(target=ASKED)
        self.pruner: Any = SimpleNamespace(
            first_soft_step=self.line.start,
            last_hard_from=self.line.hard_from,
            phase=self.line.phase,
            totals=totals,
            hardened=True,  # once the phase is hard
        )
        config = Config().changed(
            train__num_steps=steps, train__eval_every=EVERY, train__envelope_patience=patience,
            envelope={self.limited: Limit(rise=0.5, least=self.least, dimensions=self.dimensions)},
        )  # fmt: skip
        task: Any = SimpleNamespace(higher_is_better=lambda metric: False, sample_metric="loss")
        self.guard = Guard(config, self.progress, self.pruner, task)
        self.tracker: Any = SimpleNamespace(log=lambda line, step: None, say=self.actions.append)

    def loss(self) -> float:
        return self.curve(self.mask.sparsity, self.progress.step - self.mask.cut_at)

    def evaluate(self) -> None:
        self.pruner.totals.sparsity = self.mask.sparsity
        self.progress.metrics = {"loss": self.loss()}
        self.guard.judge(self.tracker)
        if self.progress.envelope.good_step == self.progress.step:
            self.save()

    def save(self) -> None:
        self.good[self.progress.step] = copy.deepcopy((self.progress.as_dict(), self.mask))

    def back(self) -> None:
        record, step = self.progress.envelope.copy(), self.progress.step
        assert record.good is not None
        saved, self.mask = copy.deepcopy(self.good[record.good["step"]])
        self.progress.restore(saved)
        record.gone_back(step)
        self.progress.envelope.restore(record.as_dict())
        self.progress.clock.stop(self.progress.step)
        assert "at the end" not in guard.in_words(self.found), "what was undone is not the end"
        self.actions.append(f"back to {self.progress.step}")

    def train(self) -> Run:
        progress = self.progress
        while progress.step < self.steps or self.guard.back:
            if self.guard.back:
                self.back()
            t = progress.step
            if t == self.line.start and self.guard.begin():
                self.save()
            if self.line.is_selection_step(t):
                assert progress.clock.moves(t) and not progress.clock.is_stopped(t)
                self.selections += 1
                target = self.line.target(t, ASKED)
                if target != self.mask.sparsity:
                    self.mask = Mask(target, t, self.selections)
            progress.step, self.trained = t + 1, self.trained + 1
            if progress.step % EVERY == 0:
                self.evaluate()
            if progress.step == self.steps:
                self.guard.ends()
        return self

    @property
    def found(self) -> dict[str, Any]:
        return guard.in_short(self.progress.envelope)


class RunOfSlices(Run):
    """The loss is that of one slice. Another slice is too small to be judged, a third is of another dimension."""

    limited, least, dimensions = "slices", 30, ["domain"]  # type: ignore[assignment]

    def evaluate(self) -> None:
        self.progress.dense_slices = self.slices(1.0)
        self.progress.slices = self.slices(self.loss())
        super().evaluate()

    def slices(self, loss: float) -> dict[str, dict[str, float]]:
        return {
            "loss[domain=a]": {"value": loss, "n": 30},
            "loss[domain=b]": {"value": 3.0 * loss**9, "n": 29},
            "loss[label=1]": {"value": 3.0 * loss**9, "n": 99},
        }


def never(sparsity: float, since: int) -> float:
    return 1.0


def from_half_on(sparsity: float, since: int) -> float:
    return 2.0 if sparsity > 0.5 else 1.1


def heals_slowly(sparsity: float, since: int) -> float:
    return 2.0 if sparsity > 0.3 and since < 8 else 1.1


def test_inside_all_the_way_nothing_is_held() -> None:
    run = Run(never).train()
    assert run.mask.sparsity == ASKED and run.trained == STEPS and not run.actions
    assert run.found["allowed_sparsity"] == run.found["asked_sparsity"] == ASKED
    assert guard.in_words(run.found) == "envelope: all of the 80.00% asked for is allowed"


def test_a_checkpoint_of_the_ramp_does_not_say_that_all_is_allowed() -> None:
    """Fails if its export's card says so, where the run had got to 30 %."""
    record = guard.Record(asked=0.8)
    record.see(40, 0.3, {"inside": True}, keeps=True)
    found = guard.of_checkpoint(record.as_dict())
    assert found and guard.in_words(found) == "envelope: 30.00% is allowed of the 80.00% asked for"


@pytest.mark.parametrize("hardened", [True, False])
def test_a_state_whose_masks_are_not_yet_permanent_is_kept_as_a_soft_one_is(hardened: bool) -> None:
    """An optimizer that skips the step that makes them so leaves a state to go back to as good as the one before."""
    run = Run(never)
    run.pruner.hardened = hardened
    run.train()
    cut = run.mask.cut_at  # the last, of which the next evaluation is in the hard phase
    assert run.line.phase(cut + EVERY - 1) == "hard" and cut + EVERY in run.good
    assert (cut + 2 * EVERY in run.good) == (not hardened)


def test_a_hold_that_heals_lets_the_ramp_go_on_where_it_stood() -> None:
    plain, run = Run(never).train(), Run(heals_slowly, steps=100).train()
    assert run.mask.sparsity == ASKED and run.trained == 100 and run.selections == plain.selections
    assert run.found["holds"] == 3 and run.found["stopped"] is None and "inside again" in run.actions[1]


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_a_hold_that_does_not_heal_goes_back_to_the_last_good_mask(patience: int) -> None:
    run = Run(from_half_on, patience).train()
    kept = run.good[run.found["good_step"]][1]
    assert run.mask == kept or run.found["good_step"] == STEPS
    assert run.mask.sparsity == pytest.approx(0.4) == run.found["allowed_sparsity"]
    assert run.line.phase(STEPS - 1) == "hard" and run.progress.clock.stopped == 30
    assert run.found["went_back_from"] == 35 + EVERY * patience and run.trained == STEPS + 5 + EVERY * patience
    further = run.found["further"]
    assert further["sparsity"] > 0.5 and further["metrics"] == {"loss": 2.0} and further["limits"] == {"loss": 1.5}
    words = guard.in_words(run.found)
    assert "40.00% is allowed of the 80.00% asked for" in words and "loss was 2, limit at most 1.5" in words


def test_a_slice_that_is_outside_holds_the_ramp_and_is_named() -> None:
    """The same decisions as of a metric over all; a slice with fewer samples than `least` has no say."""
    run, whole = RunOfSlices(from_half_on).train(), Run(from_half_on).train()
    assert run.actions[-1] == whole.actions[-1] and run.mask == whole.mask
    further = run.found["further"]
    assert list(further["outside"]) == list(further["metrics"]) == ["loss[domain=a]"]
    assert "loss[domain=a] was 2, limit at most 1.5" in guard.in_words(run.found)


def test_nothing_may_go_where_the_first_mask_is_outside() -> None:
    run = Run(lambda sparsity, since: 1.0 + 9.0 * (sparsity > 0), initial=0.1).train()
    assert run.mask == Mask() and run.found["allowed_sparsity"] == 0.0 and run.progress.clock.stopped == 10
    assert run.line.phase(10) == "hard" and "0.00% is allowed" in guard.in_words(run.found)


def test_pauses_that_take_the_time_end_at_the_last_good_sparsity() -> None:
    run = Run(heals_slowly, patience=3, steps=50).train()
    assert run.found["stopped"] == "time" and run.trained == 50
    assert "raise train.num_steps" in guard.in_words(run.found)
    assert run.mask.sparsity == pytest.approx(0.8 * 20 / 30) == run.found["allowed_sparsity"]
    assert run.found["inside"] and run.line.phase(49) == "hard" and run.progress.clock.stopped == 45


@pytest.mark.parametrize(("steps", "stopped"), [(46, None), (45, "time")])
def test_a_ramp_goes_on_as_long_as_it_can_end_with_the_last_step(steps: int, stopped: str | None) -> None:
    """A hold of five steps: everything is permanent from step 45 on."""
    run = Run(lambda sparsity, since: 2.0 if abs(sparsity - 0.4) < 0.01 and since < 8 else 1.1, steps=steps).train()
    assert run.found["holds"] == 1 and run.found["stopped"] == stopped and run.trained == steps
    assert run.mask.sparsity == pytest.approx(ASKED if stopped is None else 0.8 * 20 / 30)


def test_a_last_cut_that_the_hard_phase_does_not_heal_is_undone_after_the_last_step() -> None:
    run = Run(lambda sparsity, since: 2.0 if sparsity == ASKED else 1.1).train()
    assert run.found["went_back_from"] == STEPS and run.progress.clock.stopped == 40
    assert run.mask.sparsity == pytest.approx(0.8 * 25 / 30) and run.found["inside"]
    healed = Run(lambda sparsity, since: 2.0 if sparsity == ASKED and since < 18 else 1.1).train()
    assert healed.mask.sparsity == ASKED and healed.trained == STEPS and healed.found["further"] is None


def test_an_end_outside_with_a_sparsity_that_was_inside_is_said_and_not_undone() -> None:
    """To go back would train the same steps again."""
    run = Run(lambda sparsity, since: 2.0 if since > 15 else 1.1).train()
    assert run.trained == STEPS and not run.found["inside"] and run.found["allowed_sparsity"] == ASKED
    assert f"the model at step {run.found['evaluations'][-1]['step']} is outside" in guard.in_words(run.found)
    assert "--checkpoint good" in guard.in_words(run.found)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_quality_the_run_ends_hard_at_a_sparsity_that_was_inside(seed: int) -> None:
    """Would catch: a run that ends in a pause, trains for ever, cuts in the hard phase, or keeps what was outside."""
    generator = random.Random(seed)
    noise = {n: generator.random() for n in range(2000)}
    step = generator.random()

    def curve(sparsity: float, since: int) -> float:
        return 1.0 + noise[round(sparsity * 100) * 13 + since] * (0.3 + step + sparsity) * (sparsity > 0)

    steps = generator.choice([45, 60, 90])
    run = Run(curve, generator.randrange(4), steps, end=generator.choice([20, 35, 40]), hard_from=40).train()
    assert run.line.phase(steps - 1) == "hard" and run.progress.step == steps and run.trained <= 2 * steps
    record = run.progress.envelope
    assert record.good is not None and record.good["sparsity"] == run.mask.sparsity or not record.judged[-1]["inside"]
    assert run.mask.sparsity in [0.0, *(one["sparsity"] for one in record.judged if one["inside"])] or (
        run.mask.sparsity == ASKED and record.stopped is None
    )


@pytest.mark.parametrize(
    ("look", "action"),
    [
        ((True, False, 0, 1, False, True), "go on"),
        ((True, False, 0, 1, True, True), "go on"),
        ((True, False, 0, 1, True, False), "stop"),
        ((True, False, 0, 1, False, False), "go on"),
        ((False, False, 1, 1, False, True), "hold"),
        ((False, False, 2, 1, False, True), "go back"),
        ((False, False, 1, 0, False, True), "go back"),
        ((False, False, 1, 9, True, True), "go back"),
        ((False, True, 9, 1, True, True), "go on"),
        ((True, True, 0, 1, True, True), "go on"),
    ],
)
def test_each_branch(look: tuple[bool, bool, int, int, bool, bool], action: str) -> None:
    assert decide(Look(*look)) == action


def test_bounds_are_kept_each_in_its_own_direction() -> None:
    """Would catch: a ratio applied the wrong way round, the looser of two limits, a rounding that puts 0.9 - 0.01
    outside 0.89, and NaN taken for inside."""
    limits = {
        "accuracy": Limit(drop=0.01, ratio=0.9),
        "perplexity": Limit(ratio=1.05, rise=10.0),
        "loss": Limit(max=3.0),
    }
    dense = {"accuracy": 0.9, "perplexity": 20.0, "loss": 1.0}
    higher = {"accuracy": True, "perplexity": False, "loss": False}
    found = figures(limits, dense, {"accuracy": 0.89, "perplexity": 21.0, "loss": 3.0}, higher)
    assert found["inside"] and not found["outside"]
    assert found["limits"] == {"accuracy": pytest.approx(0.89), "perplexity": 21.0, "loss": 3.0}
    worse = figures(limits, dense, {"accuracy": 0.8899, "perplexity": 21.01, "loss": float("nan")}, higher)
    assert not worse["inside"] and list(worse["outside"]) == ["accuracy", "perplexity", "loss"]
    assert worse["outside"]["accuracy"] == "at least 0.89" and worse["outside"]["perplexity"] == "at most 21"
