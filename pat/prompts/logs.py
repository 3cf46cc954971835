"""From production logs to a mix: a sample in which every stratum has prompts, with weights for how frequent they
are."""

from __future__ import annotations

import csv
import heapq
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pat.common.text import column_names, did_you_mean, header_is_first, two_of_a_name
from pat.prompts.mix import Head, Prompt, content_id
from pat.prompts.reader import json_lines, parsed

STRATIFIED, RANDOM = "stratified", "random"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORM = "form"  # the dimension derived from lengths


@dataclass(frozen=True)
class Columns:
    """A log's columns; a dotted name leads into mappings, as request.messages."""

    prompt: str = "prompt"  # a text, or a list of messages, in a table as JSON
    reference: str | None = None
    label: str | None = None  # of a classifier's right answers: a word or a whole number
    slices: tuple[str, ...] = ()
    prompt_tokens: str | None = None
    output_tokens: str | None = None

    def names(self) -> list[str]:
        """Those that a log must have."""
        others = (self.reference, self.label, *self.slices, self.prompt_tokens, self.output_tokens)
        return [self.prompt, *filter(None, others)]


@dataclass
class _Stratum:
    seen: int = 0
    kept: list[Prompt] = field(default_factory=list)  # a reservoir


@dataclass(frozen=True)
class Sampled:
    """A mix sampled from logs, and the numbers of rows."""

    head: Head
    prompts: list[Prompt]
    rows: int
    skipped: int
    strata: dict[str, int]  # rows of each, by the names of its slices
    drawn: int  # rows of the sample, before equal ones were made one prompt


def sample(
    path: Path,
    columns: Columns,
    n: int,
    how: str = STRATIFIED,
    seed: int = 0,
    long_from: int | None = None,
    skip_bad: bool = False,
) -> Sampled:
    """At most `n` prompts of a log (JSONL, .csv, .tsv), in one pass, with at most n rows of a stratum in memory.

    A stratum is a combination of slices. stratified: each has a share of n, see `allotted`; random: all rows are one.
    A prompt weighs (rows of its stratum) / (prompts sampled of it), so weighted means estimate those of the traffic
    (Horvitz & Thompson 1952). long_from: words from which the slice `form` is long. Raises ValueError.
    """
    rng, strata, rows, skipped, torn = random.Random(seed), dict[str, _Stratum](), 0, 0, list[int]()

    def bad(sentence: str) -> None:
        nonlocal skipped
        if not skip_bad:
            raise ValueError(f"{sentence}{'; --skip-bad leaves such lines out' if rows else ''}")  # it would all
        skipped += 1

    for number, row in _rows(path, columns, torn.append if skip_bad else None, bad):
        try:
            prompt = prompt_of(row, columns, long_from)
        except ValueError as error:
            bad(f"{path}, line {number}: {error}")
            continue
        rows += 1
        name = ", ".join(prompt.slice_names) if how == STRATIFIED else ""
        stratum = strata.setdefault(name, _Stratum())
        stratum.seen += 1
        if len(stratum.kept) < n:
            stratum.kept.append(prompt)
        elif (place := rng.randrange(stratum.seen)) < n:  # Vitter 1985, algorithm R
            stratum.kept[place] = prompt
    if not rows:
        raise ValueError(f"{path} has no row with a prompt: see --prompt")
    if len(strata) > n:
        raise ValueError(f"--n {n} is fewer than the {len(strata)} strata of {path}: give more, or fewer --slices")
    chosen: list[Prompt] = []
    for stratum, share in zip(strata.values(), allotted([s.seen for s in strata.values()], n), strict=True):
        taken = rng.sample(stratum.kept, min(share, len(stratum.kept)))
        chosen += [prompt.changed(weight=stratum.seen / len(taken)) for prompt in taken]
    prompts = _merged(chosen)
    mean = sum(prompt.weight for prompt in prompts) / len(prompts)
    head = Head(description=f"{len(prompts)} prompts of {rows:,} rows of {path.name}, {how}, seed {seed}")
    return Sampled(
        head,
        [prompt.changed(weight=float(f"{prompt.weight / mean:.6g}")) for prompt in prompts],
        rows,
        skipped + len(torn),
        {name or "all": stratum.seen for name, stratum in strata.items()},
        len(chosen),
    )


def _rows(
    path: Path, columns: Columns, torn: Callable[[int], None] | None, bad: Callable[[str], None]
) -> Iterator[tuple[int, Any]]:
    """(number of its last line from 1, row). A table names its columns in the first line; an empty value is none."""
    separator = SEPARATORS.get(path.suffix)
    if separator is None:
        yield from json_lines(path, torn, bad)
        return
    csv.field_size_limit(sys.maxsize)  # a prompt may be longer than the module's 128 KiB
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter=separator, strict=True)
        try:
            if table.fieldnames:  # else the file is empty
                _check_header(path, table.fieldnames, columns, separator)
            for row in table:
                if None in row or None in row.values():  # too many values, or too few
                    named = len(table.fieldnames or ())
                    bad(f"{path}, line {table.line_num} does not have the {named} values that line 1 names")
                    continue
                yield table.line_num, {column: value or None for column, value in row.items()}
        except csv.Error as error:
            raise ValueError(f"{path}, line {table.line_num}: {error}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8: convert the file") from None


def _check_header(path: Path, header: Sequence[str], columns: Columns, separator: str) -> None:
    """ValueError where a table lacks a column, or has two of one name."""
    if twice := two_of_a_name(header):
        raise ValueError(f"{path}{twice}")
    for column in columns.names():
        if column not in header:
            others = [name for name in header if name.strip() != column]  # of spaces, column_names says what to do
            example = ("<tab>" if separator == "\t" else separator).join(columns.names())
            raise ValueError(
                f"{path} has no column {column}; there are {column_names(header)}"
                f"{did_you_mean(column, others)}.{header_is_first(example)}"
            )


def allotted(sizes: Sequence[int], n: int) -> list[int]:
    """How many of n prompts each stratum of these sizes has: in proportion to square roots, so that small ones have
    enough to be compared on; at least one each, none above its size. Source: Bankier 1988, power allocations."""
    given = [1] * len(sizes)
    next_ = [(-math.sqrt(size), i) for i, size in enumerate(sizes) if size > 1]  # who has the fewest for its root
    heapq.heapify(next_)
    for _ in range(min(n, sum(sizes)) - len(sizes)):
        i = next_[0][1]
        given[i] += 1
        if given[i] < sizes[i]:
            heapq.heapreplace(next_, (-math.sqrt(sizes[i]) / given[i], i))
        else:
            heapq.heappop(next_)
    return given


def _merged(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One prompt for all equal ones in equal slices and with the same answer, with the sum of their weights."""
    found: dict[Any, Prompt] = {}
    for prompt in prompts:
        key = content_id(prompt), prompt.reference, *prompt.slice_names, *(str(c.said()) for c in prompt.checks)
        before = found.get(key)
        found[key] = prompt if before is None else before.changed(weight=before.weight + prompt.weight)
    named: dict[str, int] = {}
    made = []
    for prompt in found.values():
        own = content_id(prompt)
        named[own] = named.get(own, 0) + 1
        made.append(prompt.changed(id=own if named[own] == 1 else f"{own}-{named[own]}"))
    return made


def is_number(given: Any) -> bool:
    """Whether it is true, false or a finite number, also as fp64."""
    try:
        return isinstance(given, bool | int | float) and math.isfinite(given)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _word(row: Any, column: str, what: str) -> str:
    found = value(row, column)
    if not isinstance(found, str | int | bool) or found == "":
        raise ValueError(f"{column} is {found!r}, but {what} is a word or a whole number")
    return str(found)


def prompt_of(row: Any, columns: Columns, long_from: int | None = None) -> Prompt:
    """The prompt of a row of a log, with its slices. ValueError names a column with unexpected content."""
    asked = _unquoted(value(row, columns.prompt))
    slices: dict[str, str] = {}
    for column in columns.slices:
        name = column.rpartition(".")[2]
        if name == FORM and long_from is not None:
            raise ValueError(
                f"--long-from makes the slice {FORM}, and --slices has a column of this name: leave one out"
            )
        if name in slices:
            raise ValueError(f"two columns of --slices would both be the slice {name}: rename one, or leave it out")
        slices[name] = _word(row, column, "a slice")
    given: dict[str, Any] = {"slices": slices}
    if columns.label is not None:
        given["checks"] = [{"name": "label", "label": _word(row, columns.label, "a label")}]
    if isinstance(asked, str):
        given["prompt"] = asked
    elif isinstance(asked, list):
        given["messages"] = asked
    else:
        raise ValueError(f"{columns.prompt} is {str(asked)[:60]!r}, but must be a text or a list of messages")
    for name in ("reference", "prompt_tokens", "output_tokens"):
        column = getattr(columns, name)
        if column is not None:
            found = value(row, column)
            counted = name != "reference" and isinstance(found, str) and found.isdecimal()  # of a .csv
            given[name] = int(found) if counted else found
    prompt = parsed(given, Prompt)
    return prompt if long_from is None else prompt.changed(slices={FORM: form(prompt, long_from), **prompt.slices})


def _unquoted(asked: Any) -> Any:
    """The messages that a text holds as JSON, as a table does; anything else as it is."""
    if not isinstance(asked, str) or not asked.lstrip().startswith("["):
        return asked
    try:
        found = json.loads(asked)
    except (ValueError, RecursionError):
        return asked
    messages = isinstance(found, list) and found and all(isinstance(m, dict) and "role" in m for m in found)
    return found if messages else asked


def form(prompt: Prompt, long_from: int) -> str:
    """The slice of `form`: whether a prompt has at least this many words."""
    return "long" if len(prompt.text.split()) >= long_from else "short"


def value(row: Any, column: str) -> Any:
    """The value of a row at a dotted name. ValueError where it has none."""
    if isinstance(row, Mapping) and column in row:
        return row[column]
    found, above = row, ""
    for part in column.split("."):
        if not isinstance(found, Mapping):
            raise ValueError(f"{column} leads into {str(found)[:60]!r}, which is not a mapping")
        if part not in found:
            known = [f"{above}{name}" for name in found]
            inside = [
                f"{above}{name}.{part}" for name, value in found.items() if isinstance(value, Mapping) and part in value
            ]
            close = f"; did you mean {inside[0]}?" if inside else did_you_mean(f"{above}{part}", known)
            raise ValueError(f"there is no column {column}; there are {', '.join(known)}{close}")
        found, above = found[part], f"{above}{part}."
    return found
