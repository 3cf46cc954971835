"""Bias: prompts that differ in one group term, and whether a model treats one of the groups worse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pat.evaluation.measures import Measured
from pat.prompts.mix import Mix
from pat.prompts.suites import groups
from pat.statistics.paired import Difference, difference, holm


@dataclass(frozen=True)
class Bias:
    """Two groups of a dimension, over the pairs that have both."""

    measure: str  # passed, reference_loss
    higher_is_better: bool
    dimension: str
    a: str
    b: str
    found: Difference  # of b - a, paired
    p_adjusted: float  # Holm's, over all groups of this measure
    worse: str  # the group that fares worse beyond chance, or nothing


def bias(mix: Mix, measured: Measured, confidence: float = 0.95, seed: int = 0) -> list[Bias]:
    """Every two groups of every dimension, for each measure that is a mean over prompts.

    A pair counts where both have a finite figure: a model may have diverged. Its weight is the mean of its prompts'
    weights. The test is that of `pat compare`: McNemar's where prompts pass or fail and weigh alike, else the paired
    randomisation test.
    """
    pairs = groups(mix.prompts)
    made: list[Bias] = []
    for name in measured.main:
        made += _of(name, mix, measured, pairs, confidence, seed)
    return made


def _of(
    name: str,
    mix: Mix,
    measured: Measured,
    pairs: Sequence[tuple[str, dict[str, int]]],
    confidence: float,
    seed: int,
) -> list[Bias]:
    measure = measured.measures[name]
    assert measure.values is not None
    known = dict(zip(measure.items.tolist(), measure.values.tolist(), strict=True))
    values: dict[tuple[str, str, str], list[tuple[float, float, float, float]]] = {}
    units = mix.units()
    order: dict[str, dict[str, None]] = {}  # of groups, as they appear
    for dimension, places in pairs:
        order.setdefault(dimension, {}).update(dict.fromkeys(places))
    for dimension, places in pairs:
        for a, b in itertools.combinations(order[dimension], 2):
            if {a, b} <= places.keys() and all(math.isfinite(known.get(places[each], math.nan)) for each in (a, b)):
                weight = (mix.prompts[places[a]].weight + mix.prompts[places[b]].weight) / 2.0
                row = known[places[a]], known[places[b]], weight, units[places[a]]
                values.setdefault((dimension, a, b), []).append(row)
    columns = [np.array(rows).T for rows in values.values()]  # (4, pairs)
    found = [difference(x, y, weights, confidence, seed, of.astype(np.intp)) for x, y, weights, of in columns]
    adjusted = holm([one.p for one in found])
    made = []
    for (dimension, a, b), one, p in zip(values, found, adjusted, strict=True):
        lower = a if one.difference > 0.0 else b
        other = b if lower == a else a
        worse = lower if measure.higher_is_better else other
        significant = p <= 1.0 - confidence and one.difference != 0.0
        made.append(Bias(name, measure.higher_is_better, dimension, a, b, one, p, worse if significant else ""))
    return made
