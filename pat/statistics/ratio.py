"""How many times as long as A does B take, on a machine that does other things meanwhile.

A and B take turns, and a coin says who begins. So if both take equally long, each block is as likely as the same block
with A and B exchanged, whatever the noise: drift, bursts and heavy tails included. Both
intervals here rest on that alone, and hold for a ratio r in place of 1 where noise is proportional to the time.

# n blocks, m measurements of each in a block, R resamples
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pat.statistics.paired import Numbers

RESAMPLES = 999  # exchanges that are drawn; R + 1 divides by 20 and by 100
STEPS = 18  # of a bisection: 3e-5 of the log is left
WIDEST = 7.0  # log of the largest ratio that a bound is looked for at: about 1,000


@dataclass(frozen=True)
class Ratio:
    """B over A, with an interval; low is 0 and high infinite where so few blocks bound nothing."""

    value: float
    low: float
    high: float

    def plain(self) -> dict[str, float | None]:
        """Plain values for JSON, which has no infinity: null where there is no bound."""
        return {"value": self.value, "low": self.low or None, "high": None if math.isinf(self.high) else self.high}

    def inverse(self) -> Ratio:
        """The ratio of a figure that is larger the less time it takes."""
        return Ratio(1.0 / self.value, 1.0 / self.high, 1.0 / self.low if self.low else math.inf)


def paired(a: Numbers, b: Numbers, confidence: float = 0.95) -> Ratio:
    """The pseudo-median of log(b / a), its mean over a block, for a, b (n, m), as a ratio; a few bad blocks do little.

    With d the n differences, value: the median of (d_i + d_j) / 2, i <= j; low and high: the c-th smallest and
    largest of these, c as large as P(T < c) <= (1 - confidence) / 2 allows, where T is Wilcoxon's signed-rank
    statistic, exactly. Source: Hodges & Lehmann 1963; Hollander, Wolfe & Chicken, Nonparametric Statistical Methods,
    3.3. Raises ValueError.
    """
    d = np.log(_checked(b)).mean(1) - np.log(_checked(a)).mean(1)
    first, second = np.triu_indices(d.size)
    means = np.sort((d[first] + d[second]) / 2.0)
    c = int((_signed_rank(d.size) <= (1.0 - confidence) / 2.0).sum())
    low, high = (float(np.exp(means[c - 1])), float(np.exp(means[-c]))) if c else (0.0, math.inf)
    return Ratio(float(np.exp(np.median(means))), low, high)


def of_quantiles(a: Numbers, b: Numbers, q: float, confidence: float = 0.95, seed: int = 0) -> Ratio:
    """The q-quantile of all of b over that of all of a, for a, b (n, m).

    low and high: the ratios r at which exchanging A and B / r in half of the blocks, at random, gives at least as
    extreme a ratio of quantiles with a probability of (1 - confidence) / 2 (randomisation test, inverted). Source:
    Fisher 1935; Ernst 2004, Statistical Science 19. Raises ValueError.
    """
    x, y = np.log(_checked(a)), np.log(_checked(b))
    exchanged = np.random.default_rng(seed).random((RESAMPLES, x.shape[0], 1)) < 0.5
    value = _apart(x, y, q)
    low, high = (_bound(*of, q, (1.0 - confidence) / 2.0, exchanged) for of in ((x, y), (y, x)))
    return Ratio(math.exp(value), math.exp(low), math.exp(-high))


def _apart(x: Numbers, y: Numbers, q: float) -> float:
    return float(np.quantile(y, q) - np.quantile(x, q))


def _bound(x: Numbers, y: Numbers, q: float, tail: float, exchanged: NDArray[np.bool_]) -> float:
    """The least log ratio that is not refused for being too low; -inf where none is."""

    def refused(shift: float) -> bool:
        """Whether y - shift is above x by more than exchanging explains."""
        moved = y - shift
        drawn = np.quantile(np.where(exchanged, x, moved), q, axis=(1, 2))
        drawn -= np.quantile(np.where(exchanged, moved, x), q, axis=(1, 2))
        extreme = int((drawn >= _apart(x, moved, q) - 1e-12).sum())
        return (extreme + 1) / (RESAMPLES + 1) <= tail

    inside = _apart(x, y, q)
    outside = inside - WIDEST
    if not refused(outside):
        return -math.inf
    for _ in range(STEPS):
        middle = (inside + outside) / 2.0
        inside, outside = (inside, middle) if refused(middle) else (middle, outside)
    return outside


@cache
def _signed_rank(n: int) -> Numbers:
    """P(T <= t), t = 0 ... n (n + 1) / 2, T the sum of those of 1 ... n whose coin shows heads."""
    chance = np.ones(1)
    for rank in range(1, n + 1):
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2.0
    return np.cumsum(chance)


def _checked(times: Numbers) -> Numbers:
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 2 or not times.size:
        raise ValueError("there are no measurements to compare: give blocks of at least one each")
    if not (np.isfinite(times).all() and (times > 0.0).all()):
        raise ValueError("a time is 0, negative or no number: the clock of this machine is too coarse for this model")
    return times
