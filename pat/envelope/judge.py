"""Whether figures are inside the limits.

# v the variant's figure, b the baseline's; q what a bound is about: v, b - v, v - b or v / b
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pat.envelope.spec import Limit

TOLERANCE = 1e-9  # relative: 0.9 - 0.89 is not above 0.01


@dataclass(frozen=True)
class Quantity:
    """A number, with an interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    def negated(self) -> Quantity:
        """The quantity with the opposite sign."""
        if self.low is None or self.high is None:
            return Quantity(-self.value)
        return Quantity(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Evidence:
    """The measurements of a figure."""

    measured: Quantity
    baseline: float | None = None
    change: Quantity | None = None  # v - b
    ratio: Quantity | None = None  # v / b
    n: int | None = None  # samples or prompts
    units: int | None = None  # of which several count as one, as copies of a prompt; None: none do


@dataclass(frozen=True)
class Check:
    """One bound of a figure against what was measured: whether it passed, and how certain that is."""

    name: str  # FIGURE.BOUND; of a slice FIGURE[DIMENSION=VALUE].BOUND
    limit: float
    rule: str  # in words, as "at most 0.01 below the baseline"
    measured: float  # v
    baseline: float | None  # b
    quantity: float  # q; 1 for the ratio of a slice whose baseline is 0
    interval: tuple[float, float] | None  # of q
    passed: bool
    edge: str = ""  # what of the interval must be inside, too, and is not
    n: int | None = None  # samples or prompts
    certain: bool = True  # whether the whole interval is on the side that q is on


def evidence(value: float, baseline: float | None = None) -> Evidence:
    """v, v - b and v / b from figures without intervals, as they come from a training; v / b is NaN where b is 0."""
    if baseline is None:
        return Evidence(Quantity(value))
    ratio = value / baseline if baseline else math.nan
    return Evidence(Quantity(value), baseline, Quantity(value - baseline), Quantity(ratio))


def judge(
    name: str,
    limit: Limit,
    known: Evidence,
    higher_is_better: bool,
    confident: bool = False,
    of_slice: bool = False,
) -> list[Check]:
    """A check for each bound. It passes when q is inside; `confident`: when q's whole interval is, where it has one.

        min: v >= limit    drop: b - v <= limit    ratio: v / b >= limit where higher is better, else <=
        max: v <= limit    rise: v - b <= limit    equal up to TOLERANCE is inside, NaN is not

    Raises ValueError where a bound needs a baseline that is not known, or a ratio to 0. A slice may be one of which the
    baseline got nothing right: nothing can be lost there, and v >= limit b holds.
    """
    made = []
    for bound, value in limit.bounds().items():
        q = _quantities(known).get(bound)
        if q is None:
            raise ValueError(f"{name}.{bound} is against a baseline: give --against FOLDER")
        at_least = bound == "min" or (bound == "ratio" and higher_is_better)
        if bound == "ratio" and of_slice and at_least and known.baseline == 0.0 <= known.measured.value:
            rule = _rule(bound, value, at_least)
            made.append(Check(f"{name}.{bound}", value, rule, known.measured.value, 0.0, 1.0, None, True, n=known.n))
            continue
        if bound == "ratio" and known.baseline is not None and known.baseline <= 0.0:
            raise ValueError(
                f"{name}.ratio: the baseline's {name} is {known.baseline:g}, and a ratio is to something above 0: give "
                "another bound"
            )
        edge = q.low if at_least else q.high
        inside, said = _inside(q.value, value, at_least), ""
        ends = [end for end in (q.low, q.high) if end is not None]
        of_one = not ends and (known.units or known.n) == 1
        certain = not of_one and all(_inside(end, value, at_least) is inside and not math.isnan(end) for end in ends)
        if confident and inside and of_one:
            inside, said = False, ", by more than one prompt or sample"
        if confident and inside and edge is not None and not _inside(edge, value, at_least):
            inside, said = False, f", and so must be the {'lower' if at_least else 'upper'} end of its interval"
        made.append(
            Check(
                name=f"{name}.{bound}",
                limit=value,
                rule=_rule(bound, value, at_least),
                measured=known.measured.value,
                baseline=known.baseline,
                quantity=q.value,
                interval=None if q.low is None or q.high is None else (q.low, q.high),
                passed=inside,
                edge=said,
                n=known.n,
                certain=certain,
            )
        )
    return made


def _quantities(known: Evidence) -> Mapping[str, Quantity | None]:
    change = known.change
    return {
        "min": known.measured,
        "max": known.measured,
        "drop": None if change is None else change.negated(),
        "rise": change,
        "ratio": known.ratio,
    }


def _inside(q: float, limit: float, at_least: bool) -> bool:
    """Whether q is on the right side of the limit, or on it; NaN is outside."""
    close = math.isclose(q, limit, rel_tol=TOLERANCE, abs_tol=1e-12)
    return close or (q > limit if at_least else q < limit)


def _rule(bound: str, value: float, at_least: bool) -> str:
    if bound == "ratio":
        return f"at {'least' if at_least else 'most'} {value:g} times the baseline"
    if bound in ("drop", "rise"):
        return f"at most {value:g} {'below' if bound == 'drop' else 'above'} the baseline"
    return f"at {'least' if at_least else 'most'} {value:g}"
