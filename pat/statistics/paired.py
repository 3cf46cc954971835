"""Two models on the same prompts: the difference, its interval, and whether chance explains it.

Prompts that vary another one are no evidence of their own: each draw and each flip takes such a unit whole, with the
weighted mean of its outcomes and the sum of its weights.

# n prompts in units, d = b - a (n,), w the prompts' weights (n,), R resamples
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are first used
from numpy.typing import NDArray

RESAMPLES = 9999  # of a bootstrap: R + 1 divides by 20 and by 100, so quantiles are order statistics
ELEMENTS = 1 << 22  # resampled numbers that are held at a time: 32 MB
EQUAL = 1e-12  # what means of equal outcomes may differ by: their sums are rounded
JACKKNIFE = 2000  # prompts up to which the bootstrap is corrected by leaving one out, which takes n^2

Numbers = NDArray[np.float64]
Units = NDArray[np.intp] | None  # (n,) which prompts are one for statistics: equal numbers; None: each is by itself


@dataclass(frozen=True)
class Difference:
    """The mean of B - A over the prompts, with an interval and a p-value."""

    n: int
    a: float
    b: float
    difference: float  # b - a
    low: float | None  # of the interval, nominally `confidence` of which cover the difference; None: of one unit
    high: float | None
    p: float  # two-sided: how often chance alone makes a difference at least as large
    test: str  # which test p comes from
    wins: int  # prompts where B is above A
    losses: int  # where it is below


def difference(
    a: Sequence[float] | Numbers,  # (n,) the outcome of A on each prompt
    b: Sequence[float] | Numbers,  # (n,) of B on the same
    weights: Sequence[float] | Numbers | None = None,  # (n,) above 0
    confidence: float = 0.95,
    seed: int = 0,
    units: Units = None,
) -> Difference:
    """Sum w d / sum w, with an interval and an exact or resampled p-value.

    The interval: `of_changes` where each unit's outcomes are 0 or 1; else a paired bootstrap's (Efron 1987, BCa).
    p: McNemar's exact test where all outcomes are 0 or 1 and weights are equal; else the paired randomisation test
    (signs of w d flipped; Fisher 1935), of which McNemar's is the special case. Both are of units. ValueError for no
    prompts or other than finite numbers.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    w = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
    if not first.size:
        raise ValueError("there are no prompts to compare on: give at least one")
    if not first.shape == second.shape == w.shape:
        raise ValueError(f"A has {first.size} outcomes, B {second.size}: they must be of the same prompts")
    if not (np.isfinite(first).all() and np.isfinite(second).all() and (w > 0).all()):
        raise ValueError("outcomes must be finite numbers and weights above 0: a model may have diverged")
    share = w / w.sum()
    n, wins, losses = first.size, int((second > first).sum()), int((second < first).sum())
    means = float(first @ share), float(second @ share), float((second - first) @ share)
    yes_or_no = binary(first) and binary(second)
    w, first, second = by_unit(units, w, first, second)
    d = second - first
    if yes_or_no:
        d[np.abs(d) <= EQUAL] = 0.0  # else the sign of what is rounded is evidence
    if yes_or_no and np.ptp(d) <= EQUAL:
        low, high = of_equal(float(d[0]), w, confidence, -1.0)
    elif binary(first) and binary(second):
        low, high = of_changes(d, w, confidence, means[2])
    else:
        low, high = interval(d, w, confidence, seed) if d.size > 1 else (None, None)
    if binary(first) and binary(second) and np.ptp(w) == 0.0:
        p, test = mcnemar(int((d > 0).sum()), int((d < 0).sum())), "McNemar, exact"
    else:
        p, test = sign_flips(d * w, seed), "paired randomisation"
    return Difference(n, *means, low, high, p, test, wins, losses)


def by_unit(units: Units, w: Numbers, *columns: Numbers) -> tuple[Numbers, ...]:
    """(units,) each: the sum of the weights of a unit, and the weighted mean of each column, in the units' order."""
    if units is None or np.unique(units).size == units.size:
        return w, *columns
    _, where = np.unique(units, return_inverse=True)
    total = np.bincount(where, w).astype(np.float64)
    means: list[Numbers] = [np.bincount(where, w * column) / total for column in columns]
    return total, *means


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p of McNemar's exact test: min(1, 2 P(X <= min(wins, losses))), X ~ Binomial(wins + losses, 1/2).

    That is how the prompts on which the models differ fall where nothing changed; by scipy. Source: McNemar 1947; exact
    as in Agresti, Categorical Data Analysis, 11.1.
    """
    return min(1.0, 2.0 * float(scipy.special.bdtr(min(wins, losses), wins + losses, 0.5)))


def sign_flips(d: Numbers, seed: int = 0) -> float:
    """Two-sided p of sum d among the sums with random signs, (k + 1) / (R + 1); all 2^n signs where they are few.

    It holds its level for any n: where both models are equal, a prompt's two outcomes may be swapped. Source: Fisher
    1935; the + 1 of Phipson & Smyth 2010, arXiv:1603.05766.
    """
    d = d[d != 0.0]
    if not d.size:
        return 1.0
    tolerance = abs(d.sum()) * (1 - 1e-9)  # equal sums differ in their last bits
    if 2**d.size <= RESAMPLES + 1:
        signs = 1.0 - 2.0 * ((np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1)
        return float((np.abs(signs @ d) >= tolerance).mean())
    rng, extreme, left = np.random.default_rng(seed), 0, RESAMPLES
    while left:
        rows = min(left, max(1, ELEMENTS // d.size))
        signs = rng.integers(0, 2, (rows, d.size), dtype=np.int8)
        extreme += int((np.abs(2.0 * (signs @ d) - d.sum()) >= tolerance).sum())
        left -= rows
    return (extreme + 1) / (RESAMPLES + 1)


def interval(
    d: Numbers, w: Numbers, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The bootstrap's interval of sum w d / sum w over prompts drawn again; (d, d) where all differences are equal.

    BCa up to JACKKNIFE prompts, beyond it percentiles, which are then the same. Source: Efron 1987, by scipy.
    """
    if np.ptp(d) == 0.0:
        return float(d[0]), float(d[0])
    for method in ("BCa", "percentile") if d.size <= JACKKNIFE else ("percentile",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # BCa where nearly all are equal
            found = scipy.stats.bootstrap(
                (d, w),
                _weighted_mean,
                paired=True,
                vectorized=True,
                confidence_level=confidence,
                n_resamples=resamples,
                batch=max(1, ELEMENTS // d.size),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    return float(found.low), float(found.high)


def of_changes(d: Numbers, w: Numbers, confidence: float, seen: float) -> tuple[float, float]:
    """The interval of sum w d / sum w, of which `seen` is to lie within it, where every d is -1, 0 or 1.

        u, v = (n_+ + 1) / (n + 2), (n_- + 1) / (n + 2)      u - v -+ z sqrt((u + v - (u - v)^2) / (n + 2))

    n_+, n_-: units that won, and that lost, of n; of weighted ones n = (sum w)^2 / sum w^2 (Kish 1965) in their shares.
    Where few differ, as of a model and its pruned copy, a bootstrap's covers too little: at 95 %, 79 % of those of 30
    prompts of which 2 and 5 % change. Source: Bonett & Price 2012, J. Educ. Behav. Stat. 37(4).
    """
    n, total = w.sum() ** 2 / (w @ w), w.sum()
    u, v = ((n * w[d == sign].sum() / total + 1.0) / (n + 2.0) for sign in (1.0, -1.0))
    half = scipy.special.ndtri(0.5 + confidence / 2.0) * math.sqrt((u + v - (u - v) ** 2) / (n + 2.0))
    return max(-1.0, min(seen, float(u - v - half))), min(1.0, max(seen, float(u - v + half)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: below alpha for none of the true hypotheses, but for a share alpha of comparisons.

    adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), the p-values in rising order. Source: Holm 1979.
    """
    order, adjusted, highest = np.argsort(p, kind="stable"), [1.0] * len(p), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = highest
    return adjusted


def of_equal(d: float, w: Numbers, confidence: float, least: float = 0.0) -> tuple[float, float]:
    """The interval where units of outcomes, yes or no, have all the same mean or difference d, from `least` to 1.

        u = 1 - (alpha/2)^(1/n), n = (sum w)^2 / sum w^2 rounded down    from (1 - u) d + u least to (1 - u) d + u

    A resample shows nothing but d, and its interval has no width: u is how much of all may be units like none that was
    seen. Source: Clopper & Pearson 1934; n of weighted ones by Kish 1965.
    """
    unseen = 1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / max(1, int(w.sum() ** 2 / (w @ w) + 1e-9)))
    return (1.0 - unseen) * d + unseen * least, (1.0 - unseen) * d + unseen


def _weighted_mean(d: Numbers, w: Numbers, axis: int = -1) -> Numbers:
    return (d * w).sum(axis) / w.sum(axis)


def binary(values: Numbers) -> bool:
    """Whether all are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())
