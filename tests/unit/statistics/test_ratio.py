"""Ratios on a machine that drifts, is interrupted and favours who comes first: against scipy, and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pat.statistics import ratio
from pat.statistics.paired import Numbers


def noisy(seed: int, blocks: int, true: float = 1.0) -> tuple[Numbers, Numbers]:
    """(a, b), each (blocks, 2), in the order A B B A or B A A B, by a coin.

    A random walk, stretches in which something else runs, single interruptions, and 10 % more for the first of a round.
    """
    rng = np.random.default_rng(seed)
    n = 4 * blocks
    busy = np.cumsum(rng.random(n) < 0.08) % 2
    log = np.cumsum(rng.normal(0.0, 0.03, n)) + busy * rng.uniform(0.2, 1.2, n) + rng.normal(0.0, 0.02, n)
    log += (rng.random(n) < 0.05) * rng.exponential(1.0, n)
    places = np.exp(log.reshape(blocks, 4) + np.array([0.1, 0.0, 0.1, 0.0]))
    outer, inner = places[:, [0, 3]], places[:, [1, 2]]
    a_begins = rng.random((blocks, 1)) < 0.5
    return np.where(a_begins, outer, inner), np.where(a_begins, inner, outer) * true


def holds(runs: list[ratio.Ratio], true: float) -> bool:
    """Whether so many of the 95 % intervals hold the truth that 95 % may do so in the long run (at level 1 %)."""
    inside = sum(run.low <= true <= run.high for run in runs)
    return inside >= int(stats.binom.ppf(0.01, len(runs), 0.95))


@pytest.mark.parametrize("true", [1.0, 0.7])
def test_the_interval_holds_in_19_of_20_runs(true: float) -> None:
    runs = [ratio.paired(*noisy(seed, 20, true)) for seed in range(200)]
    assert holds(runs, true)
    assert np.median([run.high / run.low for run in runs]) < 1.6, "it says something, too"


def test_a_t_interval_of_unpaired_times_would_not_do() -> None:
    """The same noise, judged as if it were independent: the test above can fail."""
    runs = []
    for seed in range(100):
        a, b = noisy(seed, 20)
        early, late = a[:10], b[10:]  # A first, then B
        found: Any = stats.ttest_ind(np.log(late).ravel(), np.log(early).ravel()).confidence_interval(0.95)
        runs.append(ratio.Ratio(1.0, float(np.exp(found.low)), float(np.exp(found.high))))
    assert not holds(runs, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("q", [0.5, 0.95])
def test_the_interval_of_percentiles_holds(q: float) -> None:
    assert holds([ratio.of_quantiles(*noisy(seed, 20), q, seed=seed) for seed in range(200)], 1.0)


def test_who_always_comes_second_would_look_faster() -> None:
    """Without the coin and the mirrored round, the bonus of a place would be the model's."""
    a, b = noisy(0, 200)
    rng = np.random.default_rng(1)
    fixed = ratio.paired(np.exp(rng.normal(0.1, 0.02, (200, 1))), np.exp(rng.normal(0.0, 0.02, (200, 1))))
    assert fixed.high < 0.95 and ratio.paired(a, b).low < 1.0 < ratio.paired(a, b).high


def test_paired_is_wilcoxons_test_inverted() -> None:
    a, b = noisy(3, 12, 1.3)
    found, d = ratio.paired(a, b), np.log(b).mean(1) - np.log(a).mean(1)

    def p(value: float) -> float:
        outcome: Any = stats.wilcoxon(d - np.log(value), method="exact")
        return float(outcome.pvalue)

    for bound, outwards in ((found.low, 1 - 1e-9), (found.high, 1 + 1e-9)):
        assert p(bound * outwards) <= 0.05 < p(bound / outwards)


def test_percentiles_are_numpys_and_scale() -> None:
    a, b = noisy(4, 20)
    found, twice = ratio.of_quantiles(a, b, 0.9), ratio.of_quantiles(a, 2.0 * b, 0.9)
    assert found.value == pytest.approx(np.exp(np.quantile(np.log(b), 0.9) - np.quantile(np.log(a), 0.9)))
    assert [twice.low, twice.value, twice.high] == pytest.approx(
        [2 * found.low, 2 * found.value, 2 * found.high], rel=1e-3
    )


def test_too_few_blocks_bound_nothing() -> None:
    few = ratio.paired(*noisy(5, 5))
    assert few.plain()["low"] is None and few.plain()["high"] is None
    assert few.inverse().value == pytest.approx(1 / few.value)
    assert ratio.paired(*noisy(5, 6)).plain()["low"] is not None


@pytest.mark.parametrize("bad", [np.zeros((3, 2)), np.full((3, 2), np.nan), np.empty((0, 2)), np.ones(3)])
def test_what_is_no_time_is_said(bad: Numbers) -> None:
    with pytest.raises(ValueError, match="no measurements|a time is 0"):
        ratio.paired(bad, bad)
