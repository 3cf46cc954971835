"""From measurements to conclusions: differences, slices, regressive prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pat.common import slices
from pat.common.files import finite
from pat.compare.pairs import Asked, Outcome, Pair
from pat.statistics.paired import Difference, difference, holm

MOST = 1000  # regressive prompts that are listed


@dataclass(frozen=True)
class Slice:
    """The difference in a slice."""

    name: str
    found: Difference
    p_adjusted: float  # Holm's, over the slices of this outcome
    verdict: str  # worse, better, or nothing where chance explains it


@dataclass(frozen=True)
class Regression:
    """A prompt that was right before and is wrong now; for other outcomes than right or wrong, one that became
    worse."""

    pair: Pair
    a: float
    b: float
    harm: float


@dataclass(frozen=True)
class Compared:
    """One outcome: over all prompts, per slice, and where B is worse, worst first."""

    name: str
    higher_is_better: bool
    overall: Slice
    slices: list[Slice]
    regressions: list[Regression]
    num_regressions: int
    table: dict[str, int] | None  # of yes or no: both, only A, only B, neither


@dataclass(frozen=True)
class Comparison:
    """What `pat compare` says."""

    a: str
    b: str
    data: str
    prompts: int
    confidence: float
    outcomes: list[Compared]
    agreement: float | None  # weighted mean over the prompts
    kl: float | None
    first_difference: float | None  # median over the prompts whose outputs differ
    notes: list[str]
    what: str = "prompts"  # or samples

    def plain(self) -> dict[str, object]:
        """Plain values for JSON; null where a number is infinite."""
        return finite(asdict(self))


def compare(asked: Asked, a: str, b: str, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Every outcome with interval, p-value and slices; agreement, KL and first differing token. ValueError."""
    pairs = asked.pairs
    differing = [pair.first_difference for pair in pairs if pair.first_difference is not None]
    return Comparison(
        a=a,
        b=b,
        data=asked.data,
        prompts=len(pairs),
        confidence=confidence,
        outcomes=[_compared(outcome, pairs, confidence, seed) for outcome in asked.outcomes if outcome.positions],
        agreement=_mean([(pair.agreement, pair.weight) for pair in pairs]),
        kl=_mean([(pair.kl, pair.weight) for pair in pairs]),
        first_difference=float(np.median(differing)) if differing else None,
        notes=asked.notes,
        what=asked.what,
    )


def _compared(outcome: Outcome, pairs: Sequence[Pair], confidence: float, seed: int) -> Compared:
    a, b, w = (np.asarray(values, dtype=np.float64) for values in (outcome.a, outcome.b, outcome.weights))
    units = _units([pairs[position] for position in outcome.positions])
    where = slices.places((i, pairs[position].slices) for i, position in enumerate(outcome.positions))
    found = [difference(a[i], b[i], w[i], confidence, seed, units[i]) for i in where.values()]
    adjusted = holm([one.p for one in found])
    whole, alpha = difference(a, b, w, confidence, seed, units), 1.0 - confidence
    binary = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    worse = (b < a) if outcome.higher_is_better else (b > a)
    order = sorted(np.flatnonzero(worse), key=lambda i: (-outcome.harm[i], int(i)))
    return Compared(
        name=outcome.name,
        higher_is_better=outcome.higher_is_better,
        overall=Slice("all", whole, whole.p, _verdict(whole, whole.p, alpha, outcome.higher_is_better)),
        slices=[
            Slice(name, one, p, _verdict(one, p, alpha, outcome.higher_is_better))
            for name, one, p in zip(where, found, adjusted, strict=True)
        ],
        regressions=[
            Regression(pairs[outcome.positions[i]], outcome.a[i], outcome.b[i], outcome.harm[i]) for i in order[:MOST]
        ],
        num_regressions=len(order),
        table={
            "both": int(((a == 1) & (b == 1)).sum()),
            "only_a": int(((a == 1) & (b == 0)).sum()),
            "only_b": int(((a == 0) & (b == 1)).sum()),
            "neither": int(((a == 0) & (b == 0)).sum()),
        }
        if binary
        else None,
    )


def _units(pairs: Sequence[Pair]) -> NDArray[np.intp]:
    """(n,) equal numbers for pairs of one unit."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(pair.unit or i, len(numbers)) for i, pair in enumerate(pairs)], np.intp)


def _verdict(found: Difference, p: float, alpha: float, higher_is_better: bool) -> str:
    if p > alpha or found.difference == 0.0:
        return ""
    return "better" if (found.difference > 0.0) == higher_is_better else "worse"


def _mean(values: Sequence[tuple[float | None, float]]) -> float | None:
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if known else None
