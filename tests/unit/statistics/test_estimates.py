"""Estimates and calibration against hand formulas and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from pat.statistics import estimates
from pat.statistics.calibration import expected_calibration_error


def test_the_mean_and_its_interval() -> None:
    """Of many normal numbers the interval is the normal one; of a proportion without failures it is exact."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(1.0, 1.0, 400), rng.uniform(0.5, 2.0, 400)
    found = estimates.mean(x, w)
    centre = (w @ x) / w.sum()
    half = 1.96 * math.sqrt(w**2 @ (x - centre) ** 2) / w.sum()
    assert found.value == pytest.approx(centre)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=0.02)
    exact = estimates.mean(np.ones(9))
    assert (exact.value, exact.low, exact.high) == pytest.approx((1.0, 0.025 ** (1 / 9), 1.0))
    unequal = estimates.mean(np.zeros(4), np.array([3.0, 1.0, 1.0, 1.0]))  # 36 / 12 = 3 equal ones
    assert unequal.high == pytest.approx(1.0 - 0.025 ** (1 / 3))
    assert estimates.mean([2.0]).low is None, "one number says nothing of how numbers vary"


@pytest.mark.parametrize("n", [8, 30, 100])
def test_intervals_of_shares_cover_the_truth(n: int) -> None:
    """Over all outcomes, each with its probability, 95 % or more: Wilson's hold 86 % of 30 samples of which 99.5 % are
    right. Fails, too, if a bootstrap's ends at 1 though one of 30 is wrong."""
    found = [estimates.mean(np.repeat([1.0, 0.0], [right, n - right])) for right in range(n + 1)]
    low, high = np.array([(each.low, each.high) for each in found]).T
    assert (np.diff(low) > 0.0).all() and (np.diff(high) > 0.0).all(), "the more are right, the higher both ends"
    assert (low[0], high[-1]) == (0.0, 1.0) and 0.0 < low[1] and high[-2] < 1.0
    for share in (0.005, 0.02, 0.1, 0.5, 0.8, 0.95, 0.98, 0.995, 0.9995):
        assert binom.pmf(np.arange(n + 1), n, share)[(low <= share) & (share <= high)].sum() >= 0.95, share


def test_equal_counts_have_equal_intervals() -> None:
    """Fails if the order, a weight that all share or how many copies agree in each prompt has a part in it."""
    right = np.repeat([1.0, 0.0], [1088, 12])
    first, other = estimates.mean(right), estimates.mean(right[::-1], np.full(1100, 0.3), seed=1)
    assert (first.low, first.high) == (other.low, other.high) == pytest.approx((0.9810, 0.9944), abs=5e-5)
    assert estimates.mean(np.repeat([1.0, 0.0], [949, 2])).high == pytest.approx(0.99975, abs=5e-6)
    copies = np.where(right > 0.0, 7, 3)
    w, units = np.repeat(1.0 / copies, copies), np.repeat(np.arange(1100), copies)  # sums of sevenths are rounded
    asked = estimates.mean(np.repeat(right, copies), w, units=units)
    assert (asked.low, asked.high) == (first.low, first.high)
    uneven = estimates.mean(right, np.where(np.arange(1100) % 2, 1.0, 2.0))
    assert (uneven.low, uneven.high) != (first.low, first.high), "of unequal weights counts do not say enough"


def test_any_figure_is_resampled_by_its_samples() -> None:
    """Fails if places are resampled beyond those of a slice, or a pair is parted: r of y = x is 1 in every resample."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)

    def r(places: estimates.Places) -> float:
        return float(np.corrcoef(x[places], y[places])[0, 1])

    places = np.arange(100, 300)
    found = estimates.of_places(r, places, resamples=999)
    z, half = math.atanh(r(places)), 1.96 / math.sqrt(200 - 3)  # Fisher's transformation
    assert found.n == 200 and (found.low, found.high) == pytest.approx(
        (math.tanh(z - half), math.tanh(z + half)), abs=0.03
    )
    y[100:] = 2 * x[100:]
    same = estimates.of_places(r, places, resamples=99)
    assert (same.low, same.high) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("classes", "each"), [(3, 60), (20, 5), (77, 5), (150, 2)])
def test_a_symmetric_interval_covers_a_mean_over_classes(classes: int, each: int) -> None:
    """Of 100 data sets whose classes are right by 80 %, nominally 95 intervals hold the F1 of the distribution.

    Fails if few samples a class push the interval below the figure: of 150 classes with 2 samples, percentiles cover
    38, and bias-corrected ones (Efron 1987) about 64.
    """
    rng, covered = np.random.default_rng(0), 0
    truth = 0.8 + 0.2 / classes  # precision and recall alike
    for _ in range(100):
        labels = np.repeat(np.arange(classes), each)
        answers = np.where(rng.random(labels.size) < 0.8, labels, rng.integers(0, classes, labels.size))

        def macro_f1(places: estimates.Places, y: Any = labels, x: Any = answers) -> float:
            right = np.bincount(y[places][y[places] == x[places]], minlength=classes)
            seen = np.bincount(y[places], minlength=classes) + np.bincount(x[places], minlength=classes)
            return float((2 * right[seen > 0] / seen[seen > 0]).mean())

        found = estimates.of_places(macro_f1, np.arange(labels.size), resamples=199, symmetric=True)
        assert found.low is not None and found.high is not None and found.low < found.value < found.high
        covered += found.low <= truth <= found.high
    assert covered >= 90


def test_a_symmetric_interval_is_that_of_percentiles_where_samples_are_many() -> None:
    x = np.random.default_rng(3).normal(size=2000)
    both = [
        estimates.of_places(lambda places: float(x[places].mean()), np.arange(2000), symmetric=s) for s in (False, True)
    ]
    (low, high), (low_, high_) = ((each.low, each.high) for each in both)
    assert (low_, high_) == pytest.approx((low, high), abs=0.005)


def test_calibration_by_hand() -> None:
    """Two bins of three: |2/3 - 0.6| and |3/3 - 0.9|, each for half of the samples. The order decides nothing."""
    confidences, right = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    expected = (abs(2 / 3 - 0.6) + abs(1.0 - 0.9)) / 2
    assert expected_calibration_error(confidences, right, bins=2) == pytest.approx(expected)
    turned = np.array([5, 2, 0, 3, 1, 4])
    assert expected_calibration_error(confidences[turned], right[turned], bins=2) == pytest.approx(expected)
    assert expected_calibration_error(np.full(4, 0.75), np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(0.0)
    assert expected_calibration_error(np.ones(8), np.zeros(8)) == 1.0
    w = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])  # as if each sample were there so often
    often = [np.repeat(each, w.astype(int)) for each in (confidences, right)]
    assert expected_calibration_error(confidences, right, w, bins=2) == pytest.approx(
        expected_calibration_error(*often, bins=2)
    )
    rare = expected_calibration_error(np.array([0.99, 0.9]), np.array([1.0, 0.0]), np.array([0.99, 0.01]))
    assert rare <= 0.99 * 0.01 + 0.01 * 0.9 + 1e-12, "a slice of 1 % of the traffic"
    rng = np.random.default_rng(2)
    honest = rng.uniform(0.5, 1.0, 20_000)
    assert expected_calibration_error(honest, (rng.random(20_000) < honest).astype(float)) < 0.02
    with pytest.raises(ValueError, match="no samples"):
        expected_calibration_error(np.array([]), np.array([]))


def test_units_are_resampled_whole() -> None:
    """As the same figure of the units alone: of means, of outcomes that are all alike, and of any other figure."""
    rng = np.random.default_rng(5)
    x, units, w = rng.normal(size=30), np.repeat(np.arange(30), 2), np.full(60, 0.5)
    whole, once = estimates.mean(np.repeat(x, 2), w, units=units), estimates.mean(x)
    assert (whole.low, whole.high) == pytest.approx((once.low, once.high)) and (whole.n, once.n) == (60, 30)
    assert estimates.mean(np.ones(60), w, units=units).low == estimates.mean(np.ones(30)).low
    of = np.repeat(x, 2)
    some = estimates.of_places(lambda at: float(np.median(of[at])), np.arange(60), units=units)
    each = estimates.of_places(lambda at: float(np.median(x[at])), np.arange(30))
    assert (some.low, some.high) == (each.low, each.high)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_units_that_are_all_alike_have_an_interval(n: int, confidence: float) -> None:
    """Fails if resamples, which show nothing but 1/3, decide: no width. For all 0 and all 1 it is Clopper's."""
    unseen = binomtest(0, n).proportion_ci(confidence).high
    units, w = np.repeat(np.arange(n), 3), np.repeat(np.where(np.arange(n) % 2, 0.7, 0.1), 3)  # sums that are rounded
    third = np.tile([1.0, 0.0, 0.0], n)
    found = estimates.mean(third, confidence=confidence, units=units)
    assert (found.low, found.high) == pytest.approx(((1 - unseen) / 3, (1 - unseen) / 3 + unseen))
    uneven = estimates.mean(third, w, confidence, units=units)
    kish = binomtest(0, int(w.sum() ** 2 / (np.bincount(units, w) ** 2).sum() + 1e-9)).proportion_ci(confidence).high
    assert (uneven.low, uneven.high) == pytest.approx(((1 - kish) / 3, (1 - kish) / 3 + kish))
    for right in (0, 1):
        found, exact = (
            estimates.mean(np.full(n, right), confidence=confidence),
            binomtest(n * right, n).proportion_ci(confidence),
        )
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high)) and found.value == right
    losses = estimates.mean(np.full(3 * n, 0.25), units=units)
    assert losses.low in (None, 0.25) and losses.high in (None, 0.25), "numbers that are no shares have no such bounds"


def test_resamples_in_parts_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, 999 of a million samples would take 16 GB."""
    values = np.random.default_rng(0).random(200)
    found = [estimates.of_places(lambda at: float(np.median(values[at])), np.arange(200))]
    monkeypatch.setattr(estimates, "ELEMENTS", 500)
    found.append(estimates.of_places(lambda at: float(np.median(values[at])), np.arange(200)))
    assert found[0] == found[1] and found[0].low is not None
