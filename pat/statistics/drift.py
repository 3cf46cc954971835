"""Whether traffic has changed: a number's distribution, shares of kinds, places in a space; then and now.

# n things then, m now, w the weights of those then (n,), N = n + m, d dimensions, R resamples
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.spatial import distance

from pat.statistics.paired import RESAMPLES, Numbers

ELEMENTS = 1 << 22  # resampled numbers that are held at a time: 32 MB
EXPECTED = 5.0  # things of a kind, below which chi-square is a poor approximation (Cochran 1954)
LEAST_EFFECTIVE = 25.0  # things of unequal weight, below which the wild bootstrap finds too much
TOLERANCE = 1e-12  # equal sums differ in their last bits


@dataclass(frozen=True)
class Drift:
    """How far apart both are, and how often chance alone moves them that far."""

    statistic: float  # 0: not at all
    p: float
    test: str


def effective(w: Numbers) -> float:
    """(sum w)^2 / sum w^2: as many things of equal weight tell as much. Source: Kish 1965."""
    return float(w.sum() ** 2 / (w @ w))


def of_numbers(then: Numbers, now: Numbers, w: Numbers | None = None) -> Drift:
    """D = max_x |F(x) - G(x)|, F weighted; p of equal weights: by scipy's `ks_2samp`, exact up to 10,000 things.

        p of weighted ones = K(D sqrt(n_eff m / (n_eff + m))), K Kolmogorov's limit

    Of few things the limit is above the exact p, and with ties both are too high, so they err towards no alert.
    ValueError for none. Source: Smirnov 1939; the effective size is Kish's, as in Monahan 2011, 12.6.
    """
    weights = _weights(then, now, w)
    order = np.argsort(then, kind="stable")
    values, mass = then[order], np.concatenate([[0.0], np.cumsum(weights[order]) / weights.sum()])
    at = np.union1d(then, now)
    f = mass[np.searchsorted(values, at, side="right")]
    g = np.searchsorted(np.sort(now), at, side="right") / now.size
    d, n = float(np.abs(f - g).max()), effective(weights)
    if np.ptp(weights) == 0.0:
        exact: Any = stats.ks_2samp(then, now)
        return Drift(d, float(exact.pvalue), "Kolmogorov-Smirnov")
    return Drift(d, float(special.kolmogorov(d * np.sqrt(n * now.size / (n + now.size)))), "Kolmogorov-Smirnov")


def of_shares(then: Mapping[str, float], then_n: float, now: Mapping[str, int]) -> Drift:
    """Cramer's V = sqrt(chi^2 / N) of two rows of counts, N in all, and chi-square's p, by scipy; kinds with fewer than
    EXPECTED things are put together, equally rare ones at random: never by the side that has them.

    then: weights of each kind; then_n: how many things of equal weight they stand for (first-order correction, Rao &
    Scott 1981). Where one kind is left, nothing can differ and p is 1. ValueError for none. Source: Pearson 1900;
    Cramer 1946.
    """
    whole, total = sum(then.values()), sum(now.values())
    if not (whole > 0.0 and total):
        raise ValueError("there is nothing to compare: one side has no prompts")
    names = sorted({*then, *now})
    counts = np.array([(then.get(name, 0.0) / whole * then_n, float(now.get(name, 0))) for name in names])
    counts = _pooled(np.random.default_rng(0).permutation(counts))
    if len(counts) < 2:
        return Drift(0.0, 1.0, "chi-square")
    found: Any = stats.chi2_contingency(counts.T, correction=False)
    return Drift(float(np.sqrt(found.statistic / counts.sum())), float(found.pvalue), "chi-square")


def of_outcomes(then: Numbers, now: Numbers) -> Drift:
    """|mean(now) - mean(then)| of outcomes of 0 and 1, and the two-sided p of Fisher's exact test, by scipy. ValueError
    for none or for numbers that are not finite. Source: Fisher 1935."""
    _weights(then, now, None)
    table = [[int(each.sum()), int(each.size - each.sum())] for each in (then, now)]
    found: Any = stats.fisher_exact(table)
    return Drift(abs(float(now.mean() - then.mean())), float(found.pvalue), "Fisher, exact")


def of_points(
    then: Numbers,  # (n, d)
    now: Numbers,  # (m, d)
    w: Numbers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Drift:
    """MMD, with k(x, y) = exp(-|x - y|^2 / (2 s^2)), s the median distance; p: how often resamples are as far apart.

    MMD^2 = c' K c, c = (w / sum w, -1/m). Of equal weights the labels then and now are permuted, which holds its level
    for any n (Gretton et al. 2012, JMLR 13, section 5.1). Otherwise things cannot change places: signs e of +-1 give
    (e c)' K (e c), K centred at the pooled mean (the wild bootstrap; Chwialkowski, Sejdinovic & Gretton 2014,
    arXiv:1408.5404). It finds too much where few things carry most of the weight: below LEAST_EFFECTIVE effective ones
    nothing is tested, and p is 1. p = (k + 1) / (R + 1) (Phipson & Smyth 2010, arXiv:1603.05766). ValueError for none.
    """
    weights = _weights(then, now, w)
    c = np.concatenate([weights / weights.sum(), np.full(len(now), -1.0 / len(now))])
    kernel = _centred(_kernel(np.concatenate([then, now])), np.abs(c) / 2.0)
    squared, equal, rng = float(c @ kernel @ c), np.ptp(weights) == 0.0, np.random.default_rng(seed)
    if not equal and effective(weights) < LEAST_EFFECTIVE:
        return Drift(max(squared, 0.0) ** 0.5, 1.0, f"none: fewer than {LEAST_EFFECTIVE:.0f} effective prompts")
    extreme, left = 0, resamples
    while left:
        rows = min(left, max(1, ELEMENTS // c.size))
        again = np.tile(c, (rows, 1))
        again = rng.permuted(again, axis=1) if equal else again * rng.choice((-1.0, 1.0), again.shape)
        extreme += int((((again @ kernel) * again).sum(1) >= squared - TOLERANCE).sum())
        left -= rows
    test = "MMD, permutations" if equal else "MMD, wild bootstrap"
    return Drift(max(squared, 0.0) ** 0.5, (extreme + 1) / (resamples + 1), test)


def _weights(then: Numbers, now: Numbers, w: Numbers | None) -> Numbers:
    if not (len(then) and len(now)):
        raise ValueError("there is nothing to compare: one side is empty")
    if not (np.isfinite(then).all() and np.isfinite(now).all()):
        raise ValueError("there is a number that is not finite: nothing can be compared with it")
    return np.ones(len(then)) if w is None else np.asarray(w, dtype=np.float64)


def _pooled(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(kinds, 2) in which every kind is expected EXPECTED times in both columns: the rarest are put together."""
    counts = counts[np.argsort(counts.sum(1), kind="stable")]
    least = EXPECTED * counts.sum() / counts.sum(0).min()  # things of a kind in both columns
    while len(counts) > 1 and counts[0].sum() < least:
        counts = np.concatenate([counts[:2].sum(0, keepdims=True), counts[2:]])
        counts = counts[np.argsort(counts.sum(1), kind="stable")]
    return counts


def _kernel(points: Numbers) -> Numbers:
    """(N, N)."""
    squared = distance.squareform(distance.pdist(points, "sqeuclidean"))
    apart = squared[squared > 0.0]
    return np.exp(-squared / (2.0 * np.median(apart))) if apart.size else np.ones_like(squared)


def _centred(kernel: Numbers, q: Numbers) -> Numbers:
    """<k(x) - mu, k(y) - mu>, mu the mean of the points with weights q (N,)."""
    towards = kernel @ q
    return kernel - towards[:, None] - towards + q @ towards
