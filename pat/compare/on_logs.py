"""Two logs with outcomes, of models that run side by side: a test that may be looked at every day."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pat.common.files import finite
from pat.prompts.logs import value
from pat.prompts.reader import json_lines
from pat.statistics.paired import holm
from pat.statistics.sequential import Look, look

EFFECT = 0.05  # of outcomes that are yes or no, where no other is given


@dataclass(frozen=True)
class Columns:
    """The logs' columns; a dotted name leads into mappings."""

    outcome: str
    key: str | None = None  # the same in both logs: pairs
    slices: tuple[str, ...] = ()
    prompt: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class Row:
    """An answered request."""

    outcome: float
    slices: tuple[str, ...]
    prompt: str
    output: str


@dataclass(frozen=True)
class Watched:
    """A slice at this look."""

    name: str
    look: Look
    p_adjusted: float  # Holm's, over the slices
    verdict: str  # higher, lower, or nothing yet


@dataclass(frozen=True)
class LogComparison:
    """The result so far."""

    a: str
    b: str
    outcome: str
    effect: float
    confidence: float
    paired: bool
    waiting: tuple[int, int]  # rows without an outcome yet
    unmatched: int  # keys that only one log has
    overall: Watched
    slices: list[Watched]
    regressions: list[dict[str, Any]]  # of pairs: right in A, wrong in B

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON; null where a bound is infinite."""
        return finite(asdict(self))


def compare(a: Path, b: Path, columns: Columns, effect: float | None = None, confidence: float = 0.95) -> LogComparison:
    """mean(b) - mean(a) so far, over all and per slice. ValueError for what cannot be read, or an effect not given."""
    (first, waiting_a), (second, waiting_b) = (_read(path, columns) for path in (a, b))
    rows, unmatched, paired = [list(first.values()), list(second.values())], 0, columns.key is not None
    if paired:
        common = [key for key in first if key in second]
        if not common:
            raise ValueError(f"{a} and {b} have no {columns.key} in common: give another --key, or none")
        unmatched = len(first) + len(second) - 2 * len(common)
        rows = [[first[key] for key in common], [second[key] for key in common]]
    binary = all(row.outcome in (0.0, 1.0) for each in rows for row in each)
    if effect is None and not binary:
        raise ValueError(f"{columns.outcome} is not a yes or no: give --effect, the difference that is worth finding")
    size = EFFECT if effect is None else effect
    names = list(dict.fromkeys(name for each in rows for row in each for name in row.slices))
    looks = {name: _look(rows, name, size, confidence, paired) for name in names}
    looks = {name: one for name, one in looks.items() if one is not None}
    whole = _look(rows, None, size, confidence, paired)
    assert whole is not None
    adjusted = holm([one.p for one in looks.values()])
    return LogComparison(
        a=str(a),
        b=str(b),
        outcome=columns.outcome,
        effect=size,
        confidence=confidence,
        paired=paired,
        waiting=(waiting_a, waiting_b),
        unmatched=unmatched,
        overall=Watched("all", whole, whole.p, _verdict(whole, whole.p, confidence)),
        slices=[
            Watched(name, one, p, _verdict(one, p, confidence))
            for (name, one), p in zip(looks.items(), adjusted, strict=True)
        ],
        regressions=_regressions(rows) if paired and binary else [],
    )


def _look(rows: Sequence[list[Row]], name: str | None, effect: float, confidence: float, paired: bool) -> Look | None:
    """One slice, or None where one of the logs has no row of it."""
    a, b = rows
    if paired:  # a pair has the slices of A's row
        chosen = [i for i, row in enumerate(a) if name is None or name in row.slices]
        a, b = [a[i] for i in chosen], [b[i] for i in chosen]
    elif name is not None:
        a, b = ([row for row in each if name in row.slices] for each in rows)
    if not (a and b):
        return None
    first, second = (np.array([row.outcome for row in each]) for each in (a, b))
    return look(first, second, effect, confidence, paired)


def _read(path: Path, columns: Columns) -> tuple[dict[str, Row], int]:
    """(rows by their key, or by their number; how many have no outcome yet). Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give a log, a JSON mapping a line")
    rows, waiting = dict[str, Row](), 0
    for number, content in json_lines(path):
        try:
            outcome = value(content, columns.outcome)
            if outcome is None:
                waiting += 1
                continue
            if not isinstance(outcome, bool | int | float) or not math.isfinite(outcome):
                raise ValueError(f"{columns.outcome} is {outcome!r}, but must be true, false, a number or null")
            key = str(number) if columns.key is None else str(value(content, columns.key))
            if key in rows:
                raise ValueError(f"{columns.key} {key} is there a second time: give a key that is unique, or none")
            slices = tuple(f"{name.rpartition('.')[2]}={value(content, name)}" for name in columns.slices)
            prompt, output = (
                "" if name is None else str(value(content, name)) for name in (columns.prompt, columns.output)
            )
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        rows[key] = Row(float(outcome), slices, prompt, output)
    if not rows:
        raise ValueError(f"{path} has no row with an outcome yet ({waiting} are waiting for theirs)")
    return rows, waiting


def _regressions(rows: Sequence[list[Row]]) -> list[dict[str, Any]]:
    pairs = zip(*rows, strict=True)
    return [
        {"prompt": a.prompt or b.prompt, "slices": a.slices, "a": a.output, "b": b.output}
        for a, b in pairs
        if a.outcome == 1.0 and b.outcome == 0.0
    ]


def _verdict(found: Look, p: float, confidence: float) -> str:
    return "" if p > 1.0 - confidence else "higher" if found.difference > 0.0 else "lower"
