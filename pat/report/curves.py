"""Curves of a run, from metrics.jsonl: series over steps, and where its phases begin and end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pat.report.values import finite, number

POINTS = 300  # points drawn of a series; more are averaged in groups
ASIDE = ("loss", "seconds")  # of an evaluation: drawn elsewhere, or not at all


@dataclass(frozen=True)
class Series:
    """One curve of a chart, by its points."""

    name: str
    points: Sequence[tuple[float, float]]  # (step, value)
    dashed: bool = False
    dots: bool = False  # few enough to show each


@dataclass(frozen=True)
class Chart:
    """Series that share their axes."""

    name: str
    title: str
    series: Sequence[Series]
    share: bool = False  # of 1, drawn in percent


@dataclass(frozen=True)
class Phase:
    """A stretch of steps."""

    name: str  # dense, soft, hard
    start: float
    end: float


Lines = Sequence[Mapping[str, Any]]


def charts(lines: Lines) -> list[Chart]:
    """Loss, each metric, sparsity with its target; none of a single point."""
    found = [
        Chart(
            "loss",
            "Loss",
            [series(lines, "train/loss", "training"), series(lines, "eval/loss", "held out", dots=True)],
        )
    ]
    names = dict.fromkeys(key.removeprefix("eval/") for line in lines for key in line if key.startswith("eval/"))
    for name in names:
        one = series(lines, f"eval/{name}", name, dots=True)
        if name not in ASIDE and one.points:
            before = series(lines, f"dense/{name}", "when pruning began", dots=True)
            found.append(Chart(f"metric-{len(found)}", f"{name[0].upper()}{name[1:]} on held-out data", [one, before]))
    if any(number(line, "pruning/target") for line in lines):
        pair = [series(lines, "pruning/sparsity", "reached"), series(lines, "pruning/target", "target", dashed=True)]
        found.append(Chart("sparsity", "Sparsity of the prunable weights", pair, share=True))
    kept = [Chart(one.name, one.title, [s for s in one.series if s.points], one.share) for one in found]
    return [one for one in kept if any(len(s.points) > 1 for s in one.series) or len(one.series) > 1]


def series(lines: Lines, key: str, name: str, dashed: bool = False, dots: bool = False) -> Series:
    """The values of a key, thinned to POINTS by averaging neighbours."""
    points = [(float(line["step"]), float(value)) for line in lines if (value := finite(line.get(key))) is not None]
    return Series(name, thinned(points), dashed, dots)


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours; the last stays unchanged."""
    if len(points) <= most:
        return list(points)
    width = -(-len(points) // most)
    groups = [points[i : i + width] for i in range(0, len(points) - 1, width)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [*means, points[-1]][: most + 1]


def phases(lines: Lines) -> list[Phase]:
    """From the log: each phase begins where the one before was last seen, or at the cut or the evaluation of the dense
    model in between."""
    marks = [float(line["step"]) for line in lines if any(key.startswith(("dense/", "calibration/")) for key in line)]
    seen = [(float(line["step"]), str(line["pruning/phase"])) for line in lines if line.get("pruning/phase")]
    found: list[Phase] = []
    before = 0.0
    for step, name in seen:
        if found and found[-1].name == name:
            found[-1] = Phase(name, found[-1].start, step)
        else:
            began = next((mark for mark in marks if before <= mark <= step), before)
            if found:
                found[-1] = Phase(found[-1].name, found[-1].start, began)
            found.append(Phase(name, began if found else 0.0, step))
        before = step
    return found
