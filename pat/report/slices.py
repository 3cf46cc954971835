"""Figures per slice: those of `pat evaluate`, with intervals, and those that a run's own evaluations gave."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pat.common.text import plain
from pat.report import values
from pat.report.page import Block, Heading, Table
from pat.report.sources import Sources
from pat.report.values import get, mapping, number, sequence, text

MOST = 20  # slices of a figure that are shown: with a label a slice there may be hundreds


def blocks(sources: Sources) -> Iterator[Block]:
    """A table for each figure of each evaluation on a mix or with slices, and for each run that names slices."""
    made = [*(block for written in sources.evaluations for block in _evaluation(written.content)), *_runs(sources)]
    if made:
        yield Heading("Per slice" if any(len(block.rows) > 1 for block in made) else "Over all prompts")
        yield from made


def _evaluation(content: Mapping[str, Any]) -> Iterator[Table]:
    models = [one for one in sequence(content, "models") if isinstance(one, Mapping)]
    each = [
        {text(figure, "name"): figure for figure in sequence(one, "figures") if isinstance(figure, Mapping)}
        for one in models
    ]
    confidence = number(content, "confidence") or 0.95
    for name in dict.fromkeys(name for figures in each for name in figures):
        found = [figures.get(name, {}) for figures in each]
        slices = list(dict.fromkeys(slice_ for one in found for slice_ in mapping(one, "slices")))
        if not slices and any(mapping(one, "metrics") for one in models):  # which are in a table of their own
            continue
        higher = any(get(one, "higher_is_better") for one in found)
        way = "higher is better" if higher else "lower is better"
        shown = _worst(found, slices, higher)
        rows = []
        for slice_ in (None, *shown):
            cells = [mapping(one, "overall") if slice_ is None else _slice(one, slice_) for one in found]
            n = next((number(cell, "n") for cell in cells if cell), None)
            rows.append((plain(slice_ or "all"), values.short(n), *map(_with_interval, cells)))
        head = ("slice", "n", *(text(one, "folder", "a model") for one in models))
        with_intervals = f", {confidence:.0%} intervals" * any(" to " in cell for row in rows for cell in row[2:])
        some = f"; the {MOST} of {len(slices)} slices that are worst, or became so" * (len(slices) > MOST)
        yield Table(f"{name} ({way}){with_intervals}{some}", head, rows)


def _worst(found: Sequence[Mapping[str, Any]], slices: Sequence[str], higher: bool) -> Sequence[str]:
    """All slices, or of many those in which the last model lost most against the first; of one model its lowest."""
    if len(slices) <= MOST:
        return slices

    def gain(slice_: str) -> float:
        values_ = [number(_slice(one, slice_), "value") for one in found]
        first, last = (0.0 if len(found) == 1 else values_[0]), values_[-1]
        return math.inf if first is None or last is None else (last - first) * (1 if higher else -1)

    return sorted(slices, key=gain)[:MOST]


def _slice(figure: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A slice by its whole name, which may have points, at which `get` would split it."""
    found = mapping(figure, "slices").get(name)
    return found if isinstance(found, Mapping) else {}


def _runs(sources: Sources) -> Iterator[Table]:
    for run in sources.runs:
        now, before = mapping(run.summary, "slices"), mapping(run.summary, "dense_slices")
        if now:
            rows = [_row(name, one, before.get(name)) for name, one in now.items()]
            yield Table(f"Slices of {run.name}", ("slice", "n", "when pruning began", "at the end"), rows)


def _row(name: str, now: Any, before: Any) -> tuple[str, ...]:
    at_first = number(before, "value") if isinstance(before, Mapping) else None
    return plain(name), *(values.short(one) for one in (number(now, "n"), at_first, number(now, "value")))


def _with_interval(cell: Mapping[str, Any]) -> str:
    value, low, high = (number(cell, key) for key in ("value", "low", "high"))
    interval = "" if low is None or high is None else f" ({values.short(low)} to {values.short(high)})"
    return values.short(value) + interval
