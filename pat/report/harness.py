"""Figures of lm-evaluation-harness, from the JSON of `pat evaluate --tasks`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pat.common.text import plain
from pat.report import values
from pat.report.page import Block, Table
from pat.report.sources import Sources
from pat.report.values import mapping, sequence, text

ERROR = "_stderr"


def blocks(sources: Sources) -> Iterator[Block]:
    """A table for each evaluation on tasks: a row for each task and figure, a column for each model."""
    for written in sources.evaluations:
        models = [one for one in sequence(written.content, "models") if mapping(one, "results")]
        found = [dict(_figures(one)) for one in models]
        names = dict.fromkeys(name for each in found for name in each)
        if names:
            head = ("task", "figure", *(text(one, "folder", "a model") for one in models))
            rows = [(*map(plain, name), *(each.get(name, values.NONE) for each in found)) for name in names]
            yield Table("Tasks of lm-evaluation-harness, with standard errors", head, rows)


def _figures(model: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """((task, figure), value) of the entries `FIGURE,FILTER`, beside which `FIGURE_stderr,FILTER` is."""
    for task, results in mapping(model, "results").items():
        numbers = values.numbers(results) if isinstance(results, Mapping) else {}
        for key, value in numbers.items():
            name, _, of = key.partition(",")
            if not of or name.endswith(ERROR):
                continue
            error = numbers.get(f"{name}{ERROR},{of}")
            spread = "" if error is None else f" \u00b1 {values.short(error)}"
            yield (task, name if of == "none" else f"{name}, {of}"), f"{values.short(value)}{spread}"
