"""Two streams of outcomes that may be looked at any day: an error of at most alpha over all looks together.

# n outcomes of a stream, V the variance of the difference of means, delta that difference
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
LEAST = 50  # outcomes of each stream before anything is said: means must be nearly normal
COCHRAN = 25.0  # times the squared skewness: as many must there be of numbers, for the same reason (Cochran 1977, 2.15)


@dataclass(frozen=True)
class Look:
    """What is known when the streams are looked at."""

    a_n: int
    b_n: int
    a: float  # mean
    b: float
    difference: float  # b - a
    low: float  # confidence sequence: all of them together cover the difference
    high: float
    p: float  # always valid


def look(a: Numbers, b: Numbers, effect: float, confidence: float = 0.95, paired: bool = False) -> Look:
    """The mixture sequential probability ratio test of mean(b) - mean(a) = 0, at outcomes (n_a,) and (n_b,) so far.

    With delta the difference, V its variance and a N(0, tau^2) mixture over the true one, tau = `effect`:

        L    = sqrt(V / (V + tau^2)) exp(tau^2 delta^2 / (2 V (V + tau^2))),  p = min(1, 1 / L)
        half = sqrt(V (V + tau^2) / tau^2 (2 log(1/alpha) + log((V + tau^2) / V)))

    L is a martingale in information time 1/V where there is no difference, so by Ville's inequality it passes 1/alpha
    with a probability of at most alpha, whenever and however often one looks. V is estimated, hence LEAST, and COCHRAN
    where a few large numbers decide. `effect` must be chosen before the data are seen: the size that one wants to find
    soonest; any other is found later.
    Source: Robbins 1970; Johari, Pekelis & Walsh 2015, arXiv:1512.04922, equations 2 and 9. Raises ValueError.
    """
    if not effect > 0.0:
        raise ValueError(f"the effect is {effect}, but must be above 0: the difference that is worth finding")
    if not (a.size and b.size):
        raise ValueError("one of the streams has no outcomes yet: look again when both have some")
    alpha, delta = 1.0 - confidence, float(b.mean() - a.mean())
    counts = (a.size, b.size, float(a.mean()), float(b.mean()), delta)
    if not (_enough(b - a) if paired else _enough(a) and _enough(b)):
        return Look(*counts, -math.inf, math.inf, 1.0)
    variance = _variance(b - a, (-1.0, 1.0)) / a.size if paired else _variance(a) / a.size + _variance(b) / b.size
    tau2 = effect * effect
    if variance == 0.0:  # numbers that are all the same: nothing is known of how they vary
        return Look(*counts, -math.inf, math.inf, 1.0)
    log_ratio = 0.5 * math.log(variance / (variance + tau2)) + tau2 * delta * delta / (
        2.0 * variance * (variance + tau2)
    )
    spread = 2.0 * math.log(1.0 / alpha) + math.log((variance + tau2) / variance)
    half = math.sqrt(variance * (variance + tau2) / tau2 * spread)
    return Look(*counts, delta - half, delta + half, math.exp(-max(0.0, log_ratio)))


def _enough(values: Numbers) -> bool:
    """Whether their mean is nearly normal."""
    if values.size < LEAST:
        return False
    centred, scale = values - values.mean(), float(values.std())
    binary = bool(np.isin(values, (-1.0, 0.0, 1.0)).all())  # whose variance `_variance` corrects
    return binary or scale == 0.0 or values.size >= COCHRAN * float((centred**3).mean() / scale**3) ** 2


def _variance(values: Numbers, extremes: tuple[float, float] = (0.0, 1.0)) -> float:
    """Unbiased; of outcomes 0 and 1 (of pairs, whose extremes are -1 and 1, also 0) as if there were one more of each.

    A rare failure that has not been seen yet would have the variance 0. Source: Agresti & Caffo 2000.
    """
    if np.isin(values, (*extremes, 0.0)).all():
        values = np.append(values, extremes)
    return float(values.var(ddof=1))
