"""A figure of a model over samples or prompts, which can be taken over any of them: slices, and resamples.

# m of the samples or prompts have the figure
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pat.common import slices
from pat.evaluation.prompts import PASSED, REFERENCE, Answer
from pat.evaluation.samples import Rows
from pat.prompts.checks.label import Label
from pat.prompts.mix import Mix
from pat.statistics import estimates, paired
from pat.statistics.calibration import expected_calibration_error
from pat.statistics.estimates import Estimate, Places
from pat.statistics.paired import Numbers, Units

CALIBRATION = "calibration_error"
OVER_CLASSES = ("macro_f1",)  # means over classes


@dataclass(frozen=True)
class Measure:
    """A figure of one model."""

    name: str
    higher_is_better: bool
    items: Places  # (m,) the numbers of the samples or prompts that have it
    of: Callable[[Places], float]  # the figure of those at these places of `items`, each as often as it is named
    values: Numbers | None = None  # (m,) where it is their mean by `weights`
    weights: Numbers | None = None  # (m,)
    interval: bool = True  # whether resampling gives an interval
    over_classes: bool = False  # a mean over classes, which says nothing of samples that are all of one
    units: Units = None  # (m,) equal numbers for items that are not independent

    def units_at(self, places: Places) -> Units:
        """Of the items at these places."""
        return None if self.units is None else self.units[places]

    def places(self, slice_: Sequence[int] | None = None) -> Places:
        """The places of the items that are in a slice, or of all."""
        return np.flatnonzero(np.ones(len(self.items)) if slice_ is None else np.isin(self.items, slice_))


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of one model."""

    data: str
    count: int  # samples or prompts
    slices: Mapping[str, list[int]]  # their numbers
    measures: Mapping[str, Measure]
    main: tuple[str, ...]  # the measures that are means over samples or prompts: slices are judged by them
    notes: list[str] = field(default_factory=list)


def of_mean(name: str, higher_is_better: bool, items: Sequence[int], values: Numbers, weights: Numbers) -> Measure:
    """Sum w x / sum w."""

    def mean(places: Places) -> float:
        return float(values[places] @ weights[places] / weights[places].sum())

    return Measure(name, higher_is_better, np.asarray(items, dtype=np.intp), mean, values, weights)


def of_confidences(
    items: Sequence[int], confidences: Numbers, right: Numbers, weights: Numbers | None = None
) -> Measure:
    """The expected calibration error. Of the samples of one label it would say nothing: a model that is right about how
    sure it is need not be so among those."""

    def error(places: Places) -> float:
        of = None if weights is None else weights[places]
        return expected_calibration_error(confidences[places], right[places], of)

    return Measure(CALIBRATION, False, np.asarray(items, dtype=np.intp), error, interval=False, over_classes=True)


def of_rows(rows: Rows) -> Measured:
    """The metrics of the task, and of classifiers the calibration error."""
    task, main = rows.task, rows.task.sample_metric
    values, weights = (each.numpy() for each in rows.values())
    made = {main: of_mean(main, task.directions[main], rows.numbers, values, weights)}
    for name, each in rows.other_means().items():
        made[name] = of_mean(name, task.directions[name], rows.numbers, each.numpy(), np.ones(len(rows.numbers)))
    for name in rows.metrics():
        if name in task.directions and name not in made:
            made[name] = Measure(
                name,
                task.directions[name],
                np.asarray(rows.numbers, dtype=np.intp),
                lambda places, name=name: rows.metrics(places)[name],
                over_classes=name in OVER_CLASSES,
            )
    said = rows.confidences()
    if said is not None:
        made[CALIBRATION] = of_confidences(rows.numbers, said[0].numpy(), said[1].numpy())
    where = slices.places(zip(rows.numbers, rows.slices, strict=True))
    return Measured(rows.data, len(rows.numbers), where, made, (main,))


def of_answers(mix: Mix, answers: Sequence[Answer]) -> Measured:
    """Whether all checks of a prompt pass, the loss of its reference, and of classifiers the calibration error.

    Calibration is of prompts that are checked for a label alone: there, to pass is to be right.
    """
    weights = np.array([prompt.weight for prompt in mix.prompts])
    judged = [i for i, prompt in enumerate(mix.prompts) if prompt.checks]
    referred = [i for i, answer in enumerate(answers) if answer.reference_loss is not None]
    passed = np.array([float(answers[i].failure is None) for i in judged])
    losses = np.array([answers[i].reference_loss for i in referred], dtype=np.float64)
    made = dict[str, Measure]()
    if judged:
        made[PASSED] = of_mean(PASSED, True, judged, passed, weights[judged])
    if referred:
        made[REFERENCE] = of_mean(REFERENCE, False, referred, losses, weights[referred])
    labelled = [i for i in judged if all(isinstance(check, Label) for check in mix.prompts[i].checks)]
    classes = [(i, answers[i].logits) for i in labelled]
    said = [(i, float(each.double().softmax(-1).max())) for i, each in classes if each is not None and len(each) > 1]
    if said:
        right = np.array([float(answers[i].failure is None) for i, _ in said])
        at = [i for i, _ in said]
        made[CALIBRATION] = of_confidences(at, np.array([most for _, most in said]), right, weights[at])
    units = np.array(mix.units(), dtype=np.intp)
    made = {name: replace(one, units=units[one.items]) for name, one in made.items()}
    if not made:
        raise ValueError(f"no prompt of the mix {mix.name} has checks or a reference, so there is nothing to measure")
    return Measured(f"mix {mix.name}", len(mix.prompts), mix.slices(), made, tuple(n for n in made if n != CALIBRATION))


def estimate(measure: Measure, places: Places, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The figure over these places, with its interval; none where it is not a finite number: a model has diverged."""
    if not math.isfinite(measure.of(places)):
        return Estimate(places.size, measure.of(places))
    if measure.values is not None and measure.weights is not None:
        return estimates.mean(
            measure.values[places], measure.weights[places], confidence, seed, measure.units_at(places)
        )
    if not measure.interval:
        return Estimate(places.size, measure.of(places))
    return _resampled(measure, measure.of, places, confidence, seed, (0.0, 1.0))


def difference(a: Measure, b: Measure, places: Places, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The difference b - a on the same samples, paired. Both measures are of the same items."""
    whole = b.of(places) - a.of(places)
    if not math.isfinite(whole):
        return Estimate(places.size, whole)
    if a.values is not None and b.values is not None and b.weights is not None:
        found = paired.difference(
            a.values[places], b.values[places], b.weights[places], confidence, seed, b.units_at(places)
        )
        return Estimate(found.n, found.difference, found.low, found.high)
    if not a.interval:
        return Estimate(places.size, whole)
    return _resampled(a, lambda chosen: b.of(chosen) - a.of(chosen), places, confidence, seed, (-1.0, 1.0))


def ratio(a: Measure, b: Measure, places: Places, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The quotient b / a on the same samples: paired; infinite or not a number where a is 0. A resample of which both
    have 0 counts as 1: nothing is lost in it."""
    whole = divided(b.of(places), a.of(places))

    def quotient(chosen: Places) -> float:
        found = divided(b.of(chosen), a.of(chosen))
        return 1.0 if math.isnan(found) else found

    if not (a.interval and math.isfinite(whole)):
        return Estimate(places.size, whole)
    return _resampled(a, quotient, places, confidence, seed, (0.0, math.inf))


def _resampled(
    measure: Measure,
    figure: Callable[[Places], float],
    places: Places,
    confidence: float,
    seed: int,
    allowed: tuple[float, float],  # what the figure can be where the measure is a mean over classes
) -> Estimate:
    """The figure with its interval; symmetric for a mean over classes: resamples of few samples a class are lower.

    Where none differs, as all samples are right, it is `of_equal`'s, as of a mean over samples.
    """
    units = measure.units_at(places)
    found = estimates.of_places(figure, places, confidence, seed, symmetric=measure.over_classes, units=units)
    if not measure.over_classes or found.low is None or found.high is None:
        return found
    if found.low == found.high and math.isfinite(allowed[1]):
        w, *_ = paired.by_unit(units, np.ones(places.size))
        return Estimate(found.n, found.value, *paired.of_equal(found.value, w, confidence, allowed[0]))
    return Estimate(found.n, found.value, max(allowed[0], found.low), min(allowed[1], found.high))


def divided(b: float, a: float) -> float:
    """The quotient b / a; infinite, or not a number, where a is 0."""
    if a == 0.0:
        return math.nan if b == 0.0 else math.copysign(math.inf, b)
    return b / a
