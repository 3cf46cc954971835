"""The test that may be looked at daily: its level over all looks together, its power, its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from pat.statistics.sequential import LEAST, look
from tests.sets import slow

DAYS, PER_DAY = 30, 40


def alarms(drop: float, seeds: int, paired: bool = False) -> tuple[int, int]:
    """(streams in which some day's p is 0.05 or less, the same of a t-test each day)."""
    ours = naive = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        skill = rng.beta(8, 2, DAYS * PER_DAY) if paired else 0.8
        a, b = ((rng.random(DAYS * PER_DAY) < skill - less).astype(float) for less in (0.0, drop))
        days = [slice(None, day * PER_DAY) for day in range(1, DAYS + 1)]
        ours += any(look(a[day], b[day], 0.05, paired=paired).p <= 0.05 for day in days)
        for day in days:
            spread = math.sqrt((a[day].var() + b[day].var()) / len(a[day]))
            if spread and abs(b[day].mean() - a[day].mean()) > 1.96 * spread:
                naive += 1
                break
    return ours, naive


@pytest.mark.parametrize("paired", [False, slow(True)])
def test_daily_looks_raise_no_more_false_alarms_than_said(paired: bool) -> None:
    """Over 200 seeds and 30 looks; where the usual test is looked at daily, a quarter are."""
    ours, naive = alarms(0.0, 200, paired)
    assert ours <= 18, ours
    assert paired or naive >= 30, "the simulation would show a test that must not be looked at"


def test_a_drop_is_found() -> None:
    assert alarms(0.1, 40)[0] >= 36


def test_the_ratio_is_the_mixture() -> None:
    """L = integral of N(delta; t, V) N(t; 0, tau^2) dt / N(delta; 0, V), by quadrature; the interval inverts it."""
    rng = np.random.default_rng(3)
    a, b, tau = rng.normal(0.0, 1.0, 200), rng.normal(0.2, 1.0, 300), 0.1
    found = look(a, b, tau)
    sd = math.sqrt(a.var(ddof=1) / 200 + b.var(ddof=1) / 300)
    mixed, _ = integrate.quad(lambda t: stats.norm.pdf(found.difference, t, sd) * stats.norm.pdf(t, 0, tau), -2, 2)
    assert found.p == pytest.approx(min(1.0, stats.norm.pdf(found.difference, 0, sd) / mixed), rel=1e-6)
    assert (found.p <= 0.05) == (not found.low <= 0.0 <= found.high)
    shifted = look(a, b - found.low, tau)  # where the difference is just the bound, p is just alpha
    assert abs(shifted.difference) == pytest.approx(found.difference - found.low)
    at_bound = look(a, b - found.difference + (found.difference - found.low), tau)
    assert at_bound.p == pytest.approx(0.05, rel=1e-6)


def test_skewed_numbers_wait_until_their_mean_is_nearly_normal() -> None:
    """Heavy tails in a small canary: 30 looks at 50 and 500 a day raised 10 % false alarms where 50 were enough."""
    found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a, b = rng.lognormal(0.0, 1.5, 30 * 50), rng.lognormal(0.0, 1.5, 30 * 500)
        found += any(look(a[: 50 * day], b[: 500 * day], 0.2).p <= 0.05 for day in range(1, 31))
    assert found <= 9, found
    mild = np.random.default_rng(0).exponential(1.0, 400)  # its skewness is 2: 100 are enough
    assert look(mild, mild + 1.0, 0.5).p < 0.001


def test_it_does_not_matter_which_of_a_pair_is_called_a() -> None:
    """Fails if ten wins without a loss are taken for outcomes of one stream, whose extremes are 0 and 1."""
    a, b = np.zeros(200), np.zeros(200)
    b[:10] = 1.0
    there, back = look(a, b, 0.05, paired=True), look(b, a, 0.05, paired=True)
    assert there.p == back.p and there.low == -back.high and there.high == -back.low


def test_too_few_and_bad_input() -> None:
    few, ones = np.ones(LEAST - 1), np.ones(LEAST)
    assert (look(few, 0 * ones, 0.1).p, look(few, 0 * ones, 0.1).low) == (1.0, -math.inf)
    assert look(ones, 0 * ones, 0.1).p < 0.001 and look(3 * ones, 3 * ones, 0.1).p == 1.0
    for a, effect, words in ((ones, 0.0, "above 0"), (np.array([]), 0.1, "no outcomes yet")):
        with pytest.raises(ValueError, match=words):
            look(a, ones, effect)
