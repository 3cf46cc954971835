"""The requests to a model: a mix, a log, or part of a log. Of long logs a random sample of rows is kept."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pat.prompts import logs
from pat.prompts.checks import parse as parse_check
from pat.prompts.mix import Mix, Prompt
from pat.prompts.reader import json_lines
from pat.statistics.paired import Numbers

ROWS = 2000  # of a part of a log that are compared: more would find differences that are too small to matter
USUAL = ("outcome", "latency_ms", "output_tokens", "output")  # columns that are compared where no others are named
HEAD = 1000  # rows of a log in which these are looked for


@dataclass(frozen=True)
class Columns:
    """A log's columns; a dotted name leads into mappings."""

    prompt: str = "prompt"
    slices: tuple[str, ...] = ()
    long_from: int | None = None  # words from which the slice `form` is long
    answer: str | None = None  # the right answer
    outputs: tuple[str, ...] = ()  # of yes or no, a number, or a text
    may_lack: bool = False  # whether a row without one of these is read as if it held null


@dataclass(frozen=True)
class Row:
    """A request: its prompt, and what the model put out."""

    prompt: Prompt
    outputs: tuple[float | str | None, ...] = ()  # of each of Columns.outputs; None: not known


@dataclass(frozen=True)
class Part:
    """Requests of one time, or a mix."""

    name: str
    total: int  # rows that it has
    rows: Sequence[Row]  # at most ROWS of them, drawn with equal probability
    weights: Numbers | None = None  # of a mix; None: each counts the same

    @property
    def prompts(self) -> list[Prompt]:
        """The prompt of each row."""
        return [row.prompt for row in self.rows]

    def known(self, position: int) -> list[float | str]:
        """The values of a column of outputs, without those that are not known yet: all texts, or all numbers."""
        return [value for row in self.rows if (value := row.outputs[position]) is not None]


@dataclass
class Reader:
    """Reads logs whose columns mean the same."""

    columns: Columns
    skip_bad: bool = False
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    kinds: dict[str, tuple[bool, str]] = field(default_factory=dict)  # of a column: whether it holds texts, and where

    def read(self, path: Path, share: float | None = None) -> list[Part]:
        """The log as one part, or as two of which the first has the given share of its lines. ValueError."""
        lines = count_lines(path)
        cut = 0 if share is None else round(lines * share)
        parts = [_Sample(random.Random(self.seed + i)) for i in range(2)]
        skipped, torn = 0, list[int]()

        def bad(sentence: str) -> None:
            nonlocal skipped
            if not self.skip_bad:
                some = any(part.seen for part in parts)  # else it would leave out all
                raise ValueError(f"{sentence}{'; --skip-bad leaves such lines out' if some else ''}")
            skipped += 1

        for number, content in json_lines(path, torn.append, bad):
            before = skipped + sum(part.seen for part in parts)  # lines, also those that are no JSON
            try:
                row = self._row(content, f"{path}, line {number}")
            except ValueError as error:
                bad(f"{path}, line {number}: {error}")
                continue
            parts[before >= cut].add(row)
        if skipped:
            self.notes.append(f"{path}: {skipped:,} lines that could not be used were left out")
        if torn:
            self.notes.append(f"{path}, line {torn[0]} is not whole, as in a log that is being written: left out")
        whole = sum(part.seen for part in parts)
        if not whole:
            raise ValueError(f"{path} has no whole row with a prompt: look again when requests have been logged")
        if share is None:
            return [Part(str(path), parts[1].seen, parts[1].rows)]
        if not all(part.rows for part in parts):
            empty = "last" if parts[0].rows else "first"
            raise ValueError(
                f"{path} has no row that can be used in its {empty} part, of {whole:,} in all: give --reference, an "
                "older log, or another --first"
            )
        names = (f"the first {parts[0].seen:,} rows of {path}", f"the last {parts[1].seen:,} rows of {path}")
        return [Part(name, part.seen, part.rows) for name, part in zip(names, parts, strict=True)]

    def _row(self, content: Any, place: str) -> Row:
        columns = self.columns
        prompt = logs.prompt_of(content, logs.Columns(columns.prompt, slices=columns.slices), columns.long_from)
        if columns.answer is not None and (answer := logs.value(content, columns.answer)) is not None:
            prompt = prompt.changed(checks=[parse_check({"name": "label", "label": str(answer)})])
        return Row(prompt, tuple(self._output(name, self._logged(content, name), place) for name in columns.outputs))

    def _logged(self, content: Any, name: str) -> Any:
        return None if self.columns.may_lack and name not in content else logs.value(content, name)

    def _output(self, name: str, value: Any, place: str) -> float | str | None:
        if value is None:
            return None
        is_text = isinstance(value, str)
        if not is_text and not logs.is_number(value):
            raise ValueError(f"{name} is {str(value)[:60]!r}, but must be true, false, a number, a text or null")
        before, where = self.kinds.setdefault(name, (is_text, place))
        if before != is_text:
            a, b = ("a text" if one else "a number" for one in (is_text, before))
            raise ValueError(f"{name} is {a}, but {b} in {where}: give --columns without it")
        return value if isinstance(value, str) else float(value)


@dataclass
class _Sample:
    """Keeps ROWS of the added rows, drawn with equal probability. Source: Vitter 1985, algorithm R."""

    rng: random.Random
    seen: int = 0
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.seen += 1
        if len(self.rows) < ROWS:
            self.rows.append(row)
        elif (place := self.rng.randrange(self.seen)) < ROWS:
            self.rows[place] = row


def of_mix(mix: Mix, long_from: int | None = None) -> Part:
    """A mix as a part, with its weights; long and short as in the logs."""
    weights = np.array([prompt.weight for prompt in mix.prompts])
    rows = [Row(prompt) for prompt in mix.prompts]
    if long_from is not None:
        formed = ({**prompt.slices, logs.FORM: logs.form(prompt, long_from)} for prompt in mix.prompts)
        rows = [Row(row.prompt.changed(slices=slices)) for row, slices in zip(rows, formed, strict=True)]
    return Part(f"mix {mix.name}", len(rows), rows, None if np.ptp(weights) == 0.0 else weights)


def count_lines(path: Path) -> int:
    """Lines that are not empty. ValueError where there is none, or no file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give a log, a JSON mapping a line")
    with open(path, "rb") as file:
        lines = sum(1 for line in file if line.strip())
    if not lines:
        raise ValueError(f"{path} is empty: look again when requests have been logged")
    return lines


def usual_columns(paths: Sequence[Path]) -> tuple[tuple[str, ...], list[str]]:
    """Those of USUAL that one of the first rows of every log has, and a note on each that other rows or logs lack."""
    heads, names, notes = {path: _head(path) for path in paths}, list[str](), list[str]()
    for name in USUAL:
        lacking = {path: sum(name not in row for row in rows) for path, rows in heads.items()}
        without = [path for path, rows in heads.items() if lacking[path] == len(rows)]
        if not without:
            names.append(name)
            some = ((path, n) for path, n in lacking.items() if n)
            notes += [
                f"{path}: {n:,} of the first {len(heads[path]):,} rows have no {name}, so they do not count for it"
                for path, n in some
            ]
        elif len(without) < len(heads):
            notes.append(f"{name} is not compared: the first {len(heads[without[0]]):,} rows of {without[0]} have none")
    return tuple(names), notes


def _head(path: Path) -> list[Any]:
    """The first HEAD mappings of a log."""
    ignore: Callable[[Any], None] = lambda _: None  # noqa: E731
    rows = (content for _, content in json_lines(path, ignore, ignore) if isinstance(content, dict))
    return list(itertools.islice(rows, HEAD))
