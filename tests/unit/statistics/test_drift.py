"""Drift against scipy; false alarms over 200 seeds at their nominal level, weights included; planted shifts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from pat.statistics import drift

SEEDS = range(200)
BOUND = 18  # of 200: the 99.5 % bound of 5 %


def test_of_numbers_and_shares_are_scipys() -> None:
    """Fails if F and G are taken at other places, or a row of counts is weighted twice."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=80), rng.normal(0.4, 1.2, 60)
    found, expected = drift.of_numbers(a, b), stats.ks_2samp(a, b, method="exact")
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))  # pyright: ignore
    twice = drift.of_numbers(np.concatenate([a, a[:20]]), b)
    weights = np.where(np.arange(80) < 20, 2.0, 1.0)
    assert drift.of_numbers(a, b, weights).statistic == pytest.approx(twice.statistic)
    then, now = {"x": 30.0, "y": 70.0}, {"x": 50, "y": 50}
    shares, table = drift.of_shares(then, 100.0, now), stats.chi2_contingency([[30, 70], [50, 50]], correction=False)
    assert shares.p == pytest.approx(table.pvalue)  # pyright: ignore
    assert shares.statistic == pytest.approx(math.sqrt(table.statistic / 200))  # pyright: ignore


def test_rare_kinds_are_put_together_and_one_kind_says_nothing() -> None:
    """Fails if a kind that is seen once raises an alarm, or a new one that is seen often does not."""
    then = {"a": 500.0, "b": 480.0, "c": 1.0}
    assert drift.of_shares(then, 981.0, {"a": 500, "b": 480, "d": 1}).p > 0.9
    assert drift.of_shares(then, 981.0, {"a": 500, "b": 420, "new": 61}).p < 1e-6
    assert drift.of_shares({"a": 9.0}, 9.0, {"a": 9}) == drift.Drift(0.0, 1.0, "chi-square")


def test_false_alarms_of_many_rare_kinds_stay_at_their_level() -> None:
    """1 % nominal. Fails if kinds that are seen once are put together by the side that has them: 40 % then."""
    rng, alarms, times = np.random.default_rng(0), 0, 200
    for _ in range(times):
        then, now = (Counter(map(str, rng.integers(0, 60, 50))) for _ in range(2))
        alarms += drift.of_shares(then, 50.0, now).p <= 0.01
    assert alarms <= stats.binom.isf(0.001, times, 0.01), alarms


def stratified(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, weights) of traffic of which a tenth is of another kind, that has half of the sample."""
    other = np.arange(n) < n // 2
    return rng.normal(size=(n, 3)) + 3.0 * other[:, None], np.where(other, 0.2, 1.8)


def traffic(rng: np.random.Generator, n: int, other: float = 0.1) -> np.ndarray:
    return rng.normal(size=(n, 3)) + 3.0 * (rng.random(n) < other)[:, None]


def of_shares(then: np.ndarray, now: np.ndarray, w: np.ndarray | None) -> drift.Drift:
    w = np.ones(len(then)) if w is None else w
    kinds = np.where(then[:, 0] > 1.5, "x", "y")
    counted = {kind: float(w[kinds == kind].sum()) for kind in "xy"}
    return drift.of_shares(counted, drift.effective(w), Counter(np.where(now[:, 0] > 1.5, "x", "y").tolist()))


TESTS: dict[str, Callable[..., drift.Drift]] = {
    "numbers": lambda then, now, w: drift.of_numbers(then[:, 0], now[:, 0], w),
    "shares": of_shares,
    "points": lambda then, now, w: drift.of_points(then, now, w, resamples=199),
}


@pytest.mark.parametrize("name", TESTS)
def test_false_alarms_stay_at_their_level_and_shifts_are_found(name: str) -> None:
    """5 % nominal, without and with weights; weights that were ignored would raise an alarm nearly always."""
    alarms: Counter[str] = Counter()
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        (then, w), now = stratified(rng, 60), traffic(rng, 60)
        alarms["weighted"] += TESTS[name](then, now, w).p <= 0.05
        alarms["equal"] += TESTS[name](traffic(rng, 60), now, None).p <= 0.05
        if seed % 10 == 0:
            alarms["shifted"] += TESTS[name](then, traffic(rng, 60, 0.8), w).p <= 0.05
            alarms["weights ignored"] += TESTS[name](then, now, None).p <= 0.05
    assert alarms["weighted"] <= BOUND and alarms["equal"] <= BOUND, alarms
    assert alarms["shifted"] >= 18 and alarms["weights ignored"] >= 16, alarms


@pytest.mark.parametrize("n, m", [(2, 2), (3, 3), (2, 20), (8, 8), (30, 30)])
def test_false_alarms_of_a_handful_of_numbers_stay_at_their_level(n: int, m: int) -> None:
    """1 % nominal. Fails if Kolmogorov's distribution is taken at a size of 1, where p is 0: 33 % of two and two."""
    rng, alarms, times = np.random.default_rng(0), Counter[str](), 400
    for _ in range(times):
        then, now, w = rng.normal(size=n), rng.normal(size=m), rng.uniform(1.0, 1.1, n)
        alarms["equal"] += drift.of_numbers(then, now).p <= 0.01
        alarms["weighted"] += drift.of_numbers(then, now, w).p <= 0.01
    assert max(alarms.values(), default=0) <= stats.binom.isf(0.001, times, 0.01), alarms
    apart = drift.of_numbers(np.arange(30.0), np.arange(30.0, 60.0), np.linspace(1.0, 2.0, 30))
    assert apart.statistic == 1.0 and apart.p < 1e-9


def test_few_points_of_unequal_weight_are_not_tested() -> None:
    """Fails if the wild bootstrap is asked where it raises twice as many alarms as it says."""
    rng = np.random.default_rng(0)
    then, now = rng.normal(size=(30, 4)), rng.normal(3.0, size=(300, 4))
    few, enough = (np.concatenate([np.full(10, high), np.full(20, 1.0)]) for high in (20.0, 2.0))
    assert drift.effective(few) < drift.LEAST_EFFECTIVE < drift.effective(enough)
    found = drift.of_points(then, now, few)
    assert found.p == 1.0 and "effective" in found.test and found.statistic > 0.5
    assert drift.of_points(then, now, enough).p < 0.01


def test_points_are_further_apart_than_all_permutations() -> None:
    """Fails if the statistic is not MMD's: sqrt(mean k(x, x') + mean k(y, y') - 2 mean k(x, y)) by hand."""
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([[3.0], [5.0]])
    both = np.concatenate([x, y])
    squared = (both - both.T) ** 2
    k = np.exp(-squared / (2 * np.median(squared[squared > 0])))
    by_hand = math.sqrt(k[:3, :3].mean() + k[3:, 3:].mean() - 2 * k[:3, 3:].mean())
    found = drift.of_points(x, y, resamples=999)
    assert found.statistic == pytest.approx(by_hand) and found.p == pytest.approx(0.1, abs=0.04)  # 1 of 10 labellings
    assert drift.of_points(x, x, resamples=99).p == 1.0
    assert drift.of_points(np.ones((3, 2)), np.ones((4, 2)), resamples=9).p == 1.0, "all the same"


@pytest.mark.parametrize("name", ["numbers", "points"])
def test_nothing_to_compare(name: str) -> None:
    for then, now in (([], [1.0]), ([1.0], []), ([1.0], [math.nan])):
        with pytest.raises(ValueError):
            TESTS[name](np.array(then)[:, None], np.array(now)[:, None], None)
    with pytest.raises(ValueError):
        drift.of_shares({}, 0.0, {"a": 1})
