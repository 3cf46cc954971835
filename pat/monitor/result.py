"""A monitor's findings: tests with p-values corrected for their number, and which are alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pat.common.files import finite
from pat.statistics.drift import Drift
from pat.statistics.paired import holm

PROMPTS, OUTPUTS, REPLAY = "prompts", "outputs", "replay"  # groups of checks
AGREEMENT = "agreement"  # the check of --agreement


@dataclass(frozen=True)
class Check:
    """One question, asked of two parts of the traffic, or of two models."""

    group: str
    name: str
    found: Drift
    figures: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # {figure: (then, now)}
    share: bool = False  # whether the figures are shares of 1
    p_adjusted: float = 1.0  # Holm's, over all checks of the run
    alert: bool = False

    @property
    def change(self) -> tuple[str, float, float] | None:
        """The share that has changed most, or else the first figure."""
        if not self.figures:
            return None
        of = self.figures
        name = max(of, key=lambda each: abs(of[each][1] - of[each][0])) if self.share else next(iter(of))
        return name, *of[name]


@dataclass(frozen=True)
class Asked:
    """A prompt that was replayed, on which the models differ."""

    id: str
    prompt: str
    slices: tuple[str, ...]
    a: str  # the dense model's output
    b: str
    why: str  # B's is not right; empty where that is not known
    regressive: bool  # right in A, wrong in B
    kl: float | None


@dataclass(frozen=True)
class Replayed:
    """What the dense model and the one in production make of the same prompts."""

    dense: str
    prompts: int
    checked: int  # how many of them define a right answer
    agreement: float | None
    kl: float | None
    regressive: int
    worst: Sequence[Asked]  # regressive ones first, then those that differ most


@dataclass(frozen=True)
class Monitored:
    """A run of `pat monitor`."""

    time_s: float  # since 1970
    log: str
    against: str
    reference: str  # of prompts
    then: str | None  # of outputs
    now: str
    rows: int  # now
    alpha: float
    checks: Sequence[Check]
    replayed: Replayed | None
    notes: Sequence[str]

    @property
    def alerts(self) -> list[Check]:
        """The smallest p first."""
        return sorted((check for check in self.checks if check.alert), key=lambda check: check.p_adjusted)

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return finite({"alerts": len(self.alerts)} | asdict(self))


def judged(checks: Sequence[Check], alpha: float) -> list[Check]:
    """With Holm's p over all of them: without any change, an alert has a probability of at most alpha."""
    adjusted = holm([check.found.p for check in checks])
    return [replace(check, p_adjusted=p, alert=p <= alpha) for check, p in zip(checks, adjusted, strict=True)]
