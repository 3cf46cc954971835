"""Latency, size and cost: from export.json, from a run's summary, and from measurements of `pat profile`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pat.report import values
from pat.report.page import Block, Section, Table, Text
from pat.report.sources import Run, Sources, Variant, Written
from pat.report.values import get, mapping, number, sequence, text

HOW = "pat profile DENSE PRUNED --json FILE"
# Keys of a profile whose names need a unit; others are shown as they are.
_LABELS = {
    "bytes": "on disk",
    "bytes_on_disk": "on disk",
    "cost_per_million_tokens": "cost of a million tokens",
    "parameters": "parameters",
    "nonzero_parameters": "not zero",
    "tokens_per_s": "tokens/s",
    "peak_memory_bytes": "peak memory",
    "memory_bytes": "memory",
    "load_seconds": "load (s)",
    "flops": "FLOPs",
}
_NESTED = ("metrics.", "ratio.")  # shown elsewhere
_TIME = re.compile(r".*_p\d\d")  # percentiles are times, in seconds
_SKIP = ("seed", "flops_tokens", "step", "max_length", "repeats", "warmup")


def section(sources: Sources) -> Section:
    """What the models cost, side by side."""
    blocks: list[Block] = []
    for variant in sources.variants:
        blocks += _size(variant)
    for profile in sources.profiles:
        blocks += _profile(profile.content)
    for evaluation in sources.evaluations:
        blocks += _measured(evaluation.content, "Size and speed, in one pass over the data")
    blocks += _training(sources.runs)
    if not sources.variants and not sources.evaluations and not sources.profiles:
        blocks.append(Text("No exported model is given, so its size is not known: pat export RUN --out DIR."))
    if not sources.profiles:
        blocks.append(Text(f"Latency and cost are not measured: {HOW}, and give FILE, too."))
    return Section("cost", "Latency, size and cost", blocks)


def _size(variant: Variant) -> Iterator[Block]:
    export = variant.export
    if not export:
        yield Text(f"{variant.name} has no export.json, so nothing is known of its size before pruning.")
        return
    before, after = mapping(export, "before"), mapping(export, "after")
    rows = [
        (
            name,
            shown(was := number(before, first)),
            shown(now := number(after, key)),
            ratio(was, now),
        )
        for name, first, key, shown in (
            ("parameters", "parameters", "parameters", values.short),
            ("parameters that are not zero", "parameters", "nonzero_parameters", values.short),
            (f"weights ({text(export, 'dtype', '?')})", "bytes", "bytes", values.size),
        )
    ]
    yield Table(f"Size of {variant.name}", ("", "unpruned", "exported", "ratio"), rows)
    left = [str(words) for words in sequence(export, "structures")]
    if left:
        yield Text(f"What is left: {'; '.join(left)}.")
    if get(export, "stock") is False:
        yield Text("Its layers have widths of their own: pat.export.load reads it; stock from_pretrained does not.")


def _profile(content: Mapping[str, Any]) -> Iterator[Block]:
    yield from _measured(content, "Measured by pat profile")
    for name in ("machine", "device", "backend", "mix", "data", "note"):
        if isinstance(get(content, name), str):
            yield Text(f"{name[0].upper()}{name[1:]}: {get(content, name)}.")


def _measured(content: Mapping[str, Any], caption: str) -> Iterator[Block]:
    """A row for each figure, a column for each model; the last column is the last model over the first."""
    models = [one for one in sequence(content, "models") if isinstance(one, Mapping)]
    names = [name_of(one) for one in models]
    found = [_figures(one) for one in models]
    keys = list(dict.fromkeys(key for one in found for key in one))
    rows = []
    for key in keys:
        each = [one.get(key) for one in found]
        over = _measured_ratio(models[-1], key) or ratio(each[0], each[-1])
        rows.append((label(key), *(with_unit(key, value) for value in each), *([over] if len(each) == 2 else [])))
    if rows:
        yield Table(caption, ("", *names, *(["ratio"] if len(models) == 2 else [])), rows)
    else:
        yield Text(f"{caption}: the file has no figure.")


def _figures(model: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: found
        for key, value in values.flat(model)
        if key not in _SKIP and not key.startswith(_NESTED) and (found := values.finite(value)) is not None
    }


def _measured_ratio(model: Mapping[str, Any], key: str) -> str:
    """With its interval, as a profile that interleaves the models has it."""
    middle, low, high = (number(get(model, f"ratio.{key}"), name) for name in ("value", "low", "high"))
    if middle is None:
        return ""
    return f"{middle:.3g} x" + ("" if low is None or high is None else f" ({low:.3g} to {high:.3g})")


def with_unit(key: str, value: float | None) -> str:
    """Bytes by their size, percentiles of times in milliseconds."""
    if value is not None and _TIME.fullmatch(key):
        return f"{1000 * value:.4g} ms"
    return values.size(value) if "bytes" in key else values.short(value)


def name_of(model: Mapping[str, Any]) -> str:
    """The name of a measured model."""
    return text(model, "folder") or text(model, "name") or text(model, "model") or "a model"


def label(key: str) -> str:
    """`latency_p95` as `latency p95`, with the unit where the key has none."""
    return _LABELS.get(key) or key.replace("_", " ").replace(".", ", ")


def _training(runs: Sequence[Run]) -> Iterator[Block]:
    rows = [
        (
            run.name,
            _minutes(number(run.summary, "train_seconds")),
            values.short(_rounded(number(run.summary, "tokens_per_s"))),
            values.size(number(run.summary, "peak_memory_bytes")),
            f"{text(run.summary, 'world_size', '?')} x {text(run.summary, 'device', '?')}",
        )
        for run in runs
        if run.summary
    ]
    if rows:
        yield Table("What training took", ("run", "minutes", "tokens/s", "peak memory", "ranks"), rows)


def latency(profiles: Sequence[Written]) -> tuple[str, str, str] | None:
    """(name, ratio, both in words) of the p95 of a profile, or of another latency that it has."""
    for profile in profiles:
        models = [_figures(one) for one in sequence(profile.content, "models") if isinstance(one, Mapping)]
        if len(models) >= 2:
            keys = sorted(
                (key for key in models[0] if "p95" in key or "latency" in key),
                key=lambda k: (k != "latency_p95", "p95" not in k),
            )
            for key in keys:
                if key in models[-1]:
                    first, last = models[0][key], models[-1][key]
                    return label(key), ratio(first, last), f"{with_unit(key, last)}, was {with_unit(key, first)}"
    return None


def ratio(before: float | None, after: float | None) -> str:
    """`0.49 x`; empty where either is unknown."""
    return values.NONE if not before or after is None else f"{after / before:.3g} x"


def _minutes(seconds: float | None) -> str:
    return values.NONE if seconds is None else f"{seconds / 60:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(round(value))
