"""Whether a model has seen the rows that it is evaluated on, and whether its own data is still what it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pat.data import sources
from pat.data.checks import both_sides
from pat.data.prepare import PreparedData
from pat.export import origins
from pat.schema import FILES, Config, DataConfig

HOW_MANY_AND_WHERE = ("max_eval_samples", "calibration", "cache_dir", "num_proc")  # no part of `PreparedData.origin`


def warn(config: Config, prepared: PreparedData, path: str | Path, said: Mapping[str, Any]) -> None:
    """A line on stderr for each reason to take figures of these samples for less than they seem; `said`: what the
    model's export.json says."""
    lines, trained = list[str](), True
    with contextlib.suppress(ValueError):  # keys of another version of pat, where a recipe says what is asked
        own = origins.config_in(said)
        if own is not None:
            lines += [*_held_out_now(own.data, config.data), *_others(own, config, prepared, said)]
            trained = any(
                _train(part) in map(_train, sources.parts(own.data).values())
                for part in sources.parts(config.data).values()
            )
    for line in [*both_sides(prepared, trained), *lines]:
        print(f"pat: {path}: {line}", file=sys.stderr)


def _held_out_now(own: DataConfig, asked: DataConfig) -> Iterator[str]:
    """A sentence for each source whose rows are held out of what a model of the data `own` was trained on."""
    before = sources.parts(own)
    for prefix, part in sources.parts(asked).items():
        theirs = before.get(prefix)
        if theirs is None or part.eval or _train(theirs) != _train(part):
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


def _others(own: Config, asked: Config, prepared: PreparedData, said: Mapping[str, Any]) -> Iterator[str]:
    """A sentence where the same keys stand for other samples than they did when the model was made."""
    before, now = said.get("lineage", {}).get("data"), [list(each) for each in prepared.origin]
    of_files = all(part.source in FILES for part in sources.parts(own.data).values())
    if of_files and before not in (None, now) and _keys(own) == _keys(asked):
        yield (
            "these samples are not those of the data that it was made with: a file has changed since or is another one "
            f"of the same name (paths are seen from {Path.cwd()}), or this version of pat prepares it otherwise"
        )


def _keys(config: Config) -> tuple[Any, ...]:
    """Those that decide on the samples of files."""
    data = {key: value for key, value in config.data.plain().items() if key not in HOW_MANY_AND_WHERE}
    return data, config.task.plain()


def _train(part: DataConfig) -> tuple[Any, ...]:
    """What names its training rows."""
    return part.source, part.subset, part.revision, part.train
