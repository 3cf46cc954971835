"""Whether a classifier is right as often as its confidence says.

# n samples, M bins, w the weights of the samples
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15  # as in Guo et al. 2017

Numbers = NDArray[np.float64]


def expected_calibration_error(
    confidences: Numbers,  # (n,) the probability of the class that was chosen
    right: Numbers,  # (n,) 1 where it was the right one, else 0
    w: Numbers | None = None,  # (n,); None: all count alike
    bins: int = BINS,
) -> float:
    """ECE = sum_m w(B_m) / w(all) |acc(B_m) - conf(B_m)|, bins B_m of equal mass (as much weight in each), in [0, 1].

    acc and conf are the weighted means over a bin. Equal confidences share a bin, so the order of samples decides
    nothing. Bins of equal width leave most samples in the last one. Resamples are biased upwards: there is no interval.
    Source: Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599; equal mass as in Nixon et al. 2019,
    arXiv:1904.01685. ValueError for no samples.
    """
    if not confidences.size:
        raise ValueError("there are no samples to calibrate on: give at least one")
    weights = np.ones(confidences.size) if w is None else w
    order, m = np.argsort(confidences, kind="stable"), min(bins, confidences.size)
    mass, parts = np.cumsum(weights[order]), np.arange(1, m + 1) / m
    ends = np.searchsorted(mass, parts * mass[-1] * (1 + 1e-12), side="right") - 1  # sums are rounded
    last = confidences[order[ends.clip(min=0)]]  # (m,) the highest confidence of each bin
    where = np.searchsorted(last, confidences, side="left")
    gaps = np.bincount(where, weights=weights * (right - confidences), minlength=m)  # w(B) (acc - conf)
    return float(np.abs(gaps).sum() / mass[-1])
