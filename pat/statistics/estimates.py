"""A figure of one model over its prompts or samples, with an interval.

Resamples take a unit whole, as in `paired`.

# n prompts or samples in units, w their weights (n,)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are first used
from numpy.typing import NDArray

from pat.statistics.paired import ELEMENTS, EQUAL, Numbers, Units, binary, by_unit, interval, of_equal

RESAMPLES = 999  # of a figure that is no mean: each is computed anew

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Estimate:
    """A figure; without an interval where resampling gives none."""

    n: int
    value: float
    low: float | None = None
    high: float | None = None


def mean(
    values: Sequence[float] | Numbers,  # (n,)
    weights: Sequence[float] | Numbers | None = None,  # (n,) above 0
    confidence: float = 0.95,
    seed: int = 0,
    units: Units = None,
) -> Estimate:
    """Sum w x / sum w, with its interval. ValueError for none or for infinite ones.

    The interval: `of_share` where each unit's outcomes are all 0 or all 1 and units weigh the same; `of_equal` where
    outcomes are 0 or 1 and all units have the same mean; else the bootstrap's (Efron 1987, BCa).
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if not x.size:
        raise ValueError("there is nothing to measure: give at least one prompt or sample")
    if not np.isfinite(x).all():
        raise ValueError("a figure is not a finite number: the model may have diverged")
    n, value = x.size, float(w @ x / w.sum())
    yes_or_no = binary(x)
    w, x = by_unit(units, w, x)
    if yes_or_no and np.ptp(x) <= EQUAL:
        return Estimate(n, value, *of_equal(float(x[0]), w, confidence))
    if x.size < 2:
        return Estimate(n, value)
    if yes_or_no and binary(x) and np.ptp(w) <= EQUAL * w[0]:
        return Estimate(n, value, *of_share(int(x.sum()), x.size, confidence))
    return Estimate(n, value, *interval(x, w, confidence, seed))


def of_share(right: int, n: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a share of which right of n are seen, by scipy.

        from B(alpha/2; right, n - right + 1) to B(1 - alpha/2; right + 1, n - right)    B: quantiles of beta

    It covers at least `confidence` of any share and reaches 0 or 1 only where all are wrong or right. A bootstrap's
    ends at 1 though 2 of 951 are wrong; Wilson's covers 84 % in place of 95 where the share is near 0 or 1. Source:
    Clopper & Pearson 1934.
    """
    found = scipy.stats.binomtest(right, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def of_places(
    figure: Callable[[Places], float],  # of the samples at these places, each as often as it is named
    places: Places,  # (n,)
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    symmetric: bool = False,
    units: Units = None,  # (n,) of these places
) -> Estimate:
    """Any figure over samples, with the percentiles of the bootstrap (Efron 1979, by scipy).

    Paired where `figure` compares two models on the same places. symmetric: value -+ the quantile of |resample - value|
    (Hall 1988, "On symmetric bootstrap confidence intervals"). It is for figures that are lower in resamples than in
    the samples: percentiles may not hold the value itself there, and bias-corrected ones cover too little.
    """
    value = float(figure(places))
    drawn, of_drawn = places, figure
    if units is not None and (each := np.unique(units)).size < units.size:
        whole = [places[units == unit] for unit in each]
        drawn, of_drawn = np.arange(len(whole)), lambda chosen: figure(np.concatenate([whole[i] for i in chosen]))
    if drawn.size < 2:
        return Estimate(places.size, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = scipy.stats.bootstrap(
            (drawn,),
            of_drawn,
            vectorized=False,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=max(1, ELEMENTS // drawn.size),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    if symmetric:
        apart = float(np.quantile(np.abs(found.bootstrap_distribution - value), confidence))
        return Estimate(places.size, value, value - apart, value + apart)
    return Estimate(places.size, value, float(found.confidence_interval.low), float(found.confidence_interval.high))
