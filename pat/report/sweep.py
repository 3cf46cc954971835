"""A sweep: its runs in a table, its front as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pat.common.text import plain
from pat.report import pictures, values
from pat.report.page import Block, Picture, Section, Table, Text
from pat.report.sources import Sources
from pat.report.values import get, mapping, number, sequence, text

X_LABELS = {"sparsity": "sparsity", "parameters": "parameters that are not zero", "latency": "latency (ms)"}


def section(sources: Sources) -> Section | None:
    """None where no sweep is given."""
    if not sources.sweeps:
        return None
    blocks: list[Block] = []
    for i, sweep in enumerate(sources.sweeps):
        blocks += _one(sweep.content, i)
    return Section("sweep", "The runs of the sweep", blocks)


def _one(content: Mapping[str, Any], position: int) -> Iterator[Block]:
    x, y = text(content, "x", "x"), text(content, "y", "y")
    points = [
        (a, b, get(one, "best") is True, mapping(one, "varied"))
        for one in sequence(content, "points")
        if (a := number(one, "x")) is not None and (b := number(one, "y")) is not None
    ]
    way = "higher is better" if get(content, "y_higher_is_better") else "lower is better"
    if points:
        best = [point for point in points if point[2]]
        told = "; ".join(f"{x} {values.short(a)}, {y} {values.short(b)}" for a, b, _, _ in best)
        alt = f"{y} ({way}) over {x} of {len(points)} points. On the front: {told or 'none'}."
        drawn = [(a, b, is_best) for a, b, is_best, _ in points]
        svg = pictures.front(drawn, X_LABELS.get(x, x), plain(y, 24), str(position))
        rows = [(_words(varied), values.short(a), values.short(b), "yes" if is_best else "no")
                for a, b, is_best, varied in points]  # fmt: skip
        numbers = Table(f"Points of {text(content, 'name', 'the sweep')}", ("varied", x, y, "on the front"), rows)
        yield Picture(f"front-{position}", f"{y} ({way}) over {x}", alt, svg, numbers)
    else:
        yield Text("No run of the sweep has finished, so there is no point to draw.")
    members = [one for one in sequence(content, "members") if isinstance(one, Mapping)]
    rows = [
        (
            _words(mapping(one, "varied")) or text(one, "name"),
            text(one, "meaning", "?"),
            _minutes(number(one, "seconds")),
            values.percent(number(one, "summary.sparsity")),
            values.short(number(one, f"summary.metrics.{y}")),
        )
        for one in members
    ]
    if rows:
        yield Table(f"Runs of {text(content, 'name', 'the sweep')}", ("run", "state", "minutes", "sparsity", y), rows)
    for one in members:
        if message := text(one, "message"):
            yield Text(f"{text(one, 'name', 'a run')}: {message}")


def _words(varied: Mapping[str, Any]) -> str:
    """`sparsity 0.5, seed 1`: the last part of each key."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in varied.items())


def _minutes(seconds: float | None) -> str:
    return values.NONE if seconds is None else f"{seconds / 60:.1f}"
