"""Two logs with outcomes, of models that run side by side: a test that may be looked at every day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pat.common.files import finite
from pat.prompts.logs import is_number, value
from pat.prompts.reader import json_lines
from pat.statistics.paired import holm
from pat.statistics.sequential import Look, look

EFFECT = 0.05  # of outcomes that are yes or no, where no other is given


@dataclass(frozen=True)
class Columns:
    """The logs' columns; a dotted name leads into mappings."""

    outcomes: tuple[str, ...]
    key: str | None = None  # the same in both logs: pairs
    slices: tuple[str, ...] = ()
    prompt: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class Row:
    """One answered request of a log whose outcome is known."""

    outcome: float
    slices: tuple[str, ...]
    prompt: str
    output: str


@dataclass(frozen=True)
class Watched:
    """A slice at this look."""

    name: str
    look: Look
    p_adjusted: float  # Holm's: over the outcomes, or over the slices of all outcomes
    verdict: str  # higher, lower, or nothing yet


@dataclass(frozen=True)
class OutcomeSoFar:
    """A column of both logs."""

    name: str
    effect: float
    waiting: tuple[int, int]  # rows without an outcome yet
    unmatched: int  # keys that only one log has, among those with an outcome
    overall: Watched
    slices: list[Watched]
    regressions: list[dict[str, Any]]  # of pairs: right in A, wrong in B


@dataclass(frozen=True)
class LogComparison:
    """The result so far."""

    a: str
    b: str
    confidence: float
    paired: bool
    watched: list[OutcomeSoFar]

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON; null where a bound is infinite."""
        return finite(asdict(self))


def compare(
    a: Path,
    b: Path,
    columns: Columns,
    effects: Mapping[str, float] | None = None,  # by outcome; "": of those that have none of their own
    confidence: float = 0.95,
) -> LogComparison:
    """mean(b) - mean(a) so far of each outcome, over all and per slice. ValueError for what cannot be read, or an
    effect not given."""
    given, paired = effects or {}, columns.key is not None
    if unknown := sorted(given.keys() - {"", *columns.outcomes}):
        raise ValueError(f"--effect is given for {unknown[0]}, which is not among the outcomes: add it to --outcome")
    last = [column.rpartition(".")[2] for column in columns.slices]
    if twice := sorted({name for name in last if last.count(name) > 1}):
        raise ValueError(f"two columns of --slices would both be the slice {twice[0]}: rename one, or leave it out")
    found = [
        _outcome((a, b), name, columns, given.get(name, given.get("")), confidence)
        for name in dict.fromkeys(columns.outcomes)
    ]
    return LogComparison(str(a), str(b), confidence, paired, _adjusted(found, confidence))


def _outcome(
    logs: tuple[Path, Path], name: str, columns: Columns, effect: float | None, confidence: float
) -> OutcomeSoFar:
    """One column, its p-values not adjusted yet."""
    (first, waiting_a), (second, waiting_b) = (_read(path, name, columns) for path in logs)
    rows, unmatched, paired = [list(first.values()), list(second.values())], 0, columns.key is not None
    if paired:
        common = [key for key in first if key in second]
        if not common:
            raise ValueError(
                f"{' and '.join(map(str, logs))} have no {columns.key} in common: give another --key, or none"
            )
        unmatched = len(first) + len(second) - 2 * len(common)
        rows = [[first[key] for key in common], [second[key] for key in common]]
    binary = all(row.outcome in (0.0, 1.0) for each in rows for row in each)
    if effect is None and not binary:
        raise ValueError(f"{name} is not a yes or no: give --effect, the difference that is worth finding")
    size = EFFECT if effect is None else effect
    of_a, of_b = (np.array([row.outcome for row in each]) for each in rows)
    in_a, in_b = (_places(each) for each in rows)
    in_b = in_a if paired else in_b  # a pair has the slices of A's row
    looks = {one: look(of_a[in_a[one]], of_b[in_b[one]], size, confidence, paired) for one in in_a if one in in_b}
    whole = look(of_a, of_b, size, confidence, paired)
    return OutcomeSoFar(
        name,
        effect=size,
        waiting=(waiting_a, waiting_b),
        unmatched=unmatched,
        overall=Watched("all", whole, whole.p, ""),
        slices=[Watched(one, at, at.p, "") for one, at in looks.items()],
        regressions=_regressions(rows) if paired and binary else [],
    )


def _adjusted(found: Sequence[OutcomeSoFar], confidence: float) -> list[OutcomeSoFar]:
    """With verdicts by p-values that are adjusted for the number of outcomes, or of their slices."""

    def judged(each: Sequence[Watched]) -> list[Watched]:
        adjusted = holm([one.look.p for one in each])
        return [
            replace(one, p_adjusted=p, verdict=_verdict(one.look, p, confidence))
            for one, p in zip(each, adjusted, strict=True)
        ]

    whole, parts = judged([one.overall for one in found]), judged([one for each in found for one in each.slices])
    rest = iter(parts)
    return [
        replace(one, overall=overall, slices=[next(rest) for _ in one.slices])
        for one, overall in zip(found, whole, strict=True)
    ]


def _places(rows: Sequence[Row]) -> dict[str, list[int]]:
    """The rows of each slice."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        for name in row.slices:
            places.setdefault(name, []).append(i)
    return places


def _read(path: Path, name: str, columns: Columns) -> tuple[dict[str, Row], int]:
    """(rows by their key, or by their number; how many have no outcome yet, among them a last one that is still being
    written). Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give a log, a JSON mapping a line")
    rows, waiting, torn = dict[str, Row](), 0, list[int]()
    for number, content in json_lines(path, torn.append):
        try:
            outcome = value(content, name)
            if outcome is None:
                waiting += 1
                continue
            if not is_number(outcome):
                raise ValueError(f"{name} is {str(outcome)[:60]!r}, but must be true, false, a number or null")
            given = number if columns.key is None else value(content, columns.key)
            if given is None:
                raise ValueError(f"{columns.key} is null: give --key a column of unique values, or leave --key out")
            key = str(given)
            if key in rows:
                raise ValueError(
                    f"{columns.key} {key} occurs twice: give --key a column of unique values, or leave --key out"
                )
            slices = tuple(f"{one.rpartition('.')[2]}={value(content, one)}" for one in columns.slices)
            prompt, output = (
                "" if one is None else str(value(content, one)) for one in (columns.prompt, columns.output)
            )
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        rows[key] = Row(float(outcome), slices, prompt, output)
    waiting += len(torn)
    if not rows:
        raise ValueError(f"{path} has no row with a value of {name} yet ({waiting} are waiting for theirs)")
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
