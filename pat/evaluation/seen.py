"""Whether a model has seen the rows that it is evaluated on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pat.data import sources
from pat.data.checks import both_sides
from pat.data.prepare import PreparedData
from pat.export import origins
from pat.schema import Config, DataConfig


def warn(config: Config, prepared: PreparedData, path: str | Path, said: Mapping[str, Any]) -> None:
    """A line on stderr for each reason to take figures of these samples for less than they seem; `said`: what the
    model's export.json says."""
    own = origins.config_in(said)
    lines = [*both_sides(prepared), *([] if own is None else _held_out_now(own.data, config.data))]
    for line in lines:
        print(f"pat: {path}: {line}", file=sys.stderr)


def _held_out_now(own: DataConfig, asked: DataConfig) -> Iterator[str]:
    """A sentence for each source whose rows are held out of what a model of the data `own` was trained on."""
    before = sources.parts(own)
    for prefix, part in sources.parts(asked).items():
        theirs = before.get(prefix)
        if theirs is None or part.eval or _training_rows(theirs) != _training_rows(part):
            continue
        if theirs.eval:
            yield (
                f"it was trained on all rows of {prefix}train, and {prefix}eval=null holds some of them out only now: "
                f"the metrics count what was memorised; leave {prefix}eval as it was"
            )
        elif part.eval_fraction > theirs.eval_fraction:
            yield (
                f"it was trained on evaluation rows, for {prefix}eval_fraction={part.eval_fraction:g} is above its own "
                f"{theirs.eval_fraction:g}: the metrics count what was memorised; give {theirs.eval_fraction:g} or less"
            )


def _training_rows(part: DataConfig) -> tuple[Any, ...]:
    return part.source, part.subset, part.revision, part.train
