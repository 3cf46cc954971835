"""Latency, size and cost: from export.json, from a run's summary, and from measurements of `pat profile`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
_NESTED = ("metrics.", "ratio.", "results.")  # shown elsewhere
_TIME = re.compile(r".*_p\d\d")  # percentiles are times, in seconds
# The first one that is loaded pays for more than its weights; an evaluation's models run one after the other, so what
# else the machine does decides between their speeds.
_NO_RATIO = ("load_seconds", "tokens_per_s")
_SKIP = ("prompts", "seed", "flops_tokens", "step", "max_length", "repeats", "warmup")


def section(sources: Sources) -> Section:
    """What the models cost, side by side."""
    blocks: list[Block] = []
    for variant in sources.variants:
        blocks += _size(variant)
    for profile in sources.profiles:
        blocks += _profile(profile.content)
        if said := sources.stale(profile):
            blocks.append(Text(said))
    for evaluation in sources.evaluations:
        if any(map(_figures, _models(evaluation.content))):  # those of a mix or of tasks have none
            blocks += _measured(evaluation.content, "Size and speed, in one pass over the data")
    if not blocks:
        blocks.append(Text("No exported model is given, so its size is not known: pat export RUN --out DIR."))
    blocks += _training(sources.runs)
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
        (name, shown(was := number(before, key)), shown(now := number(after, key)), ratio(was, now))
        for name, key, shown in (
            ("parameters", "parameters", values.short),
            (f"weights ({text(export, 'dtype', '?')})", "bytes", values.size),
        )
    ]
    every, left = number(before, "parameters"), number(after, "nonzero_parameters")
    rows.insert(1, ("parameters that are not zero", values.NONE, values.short(left), f"{ratio(every, left)} of all"))
    yield Table(f"Size of {variant.name}", ("", "unpruned", "exported", "ratio"), rows)
    left = [str(words) for words in sequence(export, "structures")]
    if left:
        yield Text(f"What is left: {'; '.join(left)}.")
    if get(export, "stock") is False:
        yield Text("Its layers have widths of their own: pat.export.load reads it; stock from_pretrained does not.")


def _profile(content: Mapping[str, Any]) -> Iterator[Block]:
    yield from _measured(
        content,
        "Measured by pat profile; ratios are to the first model on a backend, "
        "those with an interval of requests in turn",
    )
    backends = {text(one, "backend") for one in _models(content)}
    said = dict(content) | ({"backend": backends.pop() or None} if len(backends) == 1 else {})
    for name in ("machine", "device", "backend", "mix", "data", "note"):
        if isinstance(get(said, name), str):
            yield Text(f"{name[0].upper()}{name[1:]}: {get(said, name)}.")


def _measured(content: Mapping[str, Any], caption: str) -> Iterator[Block]:
    """A row for each figure, a column for each model, and one for its ratio to the first of its backend."""
    models = _models(content)
    found, bases = [_figures(one) for one in models], [_base(content, one) for one in models]
    head: list[str] = []
    for model, base in zip(models, bases, strict=True):
        over = "ratio" if len(models) == 2 else f"ratio of {_column(models, model, short=True)}"
        head += [_column(models, model), *([] if base is None else [over])]
    rows: list[list[str]] = []
    for key in dict.fromkeys(key for one in found for key in one):
        rows.append([label(key)])
        for model, figures, base in zip(models, found, bases, strict=True):
            over = [] if base is None else [_over(models, model, base, key)]
            rows[-1] += [with_unit(key, figures.get(key)), *over]
    if rows:
        yield Table(caption, ("", *head), rows)
    else:
        yield Text(f"{caption}: the file has no figure.")


def _models(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in sequence(content, "models") if isinstance(one, Mapping)]


def _place(content: Mapping[str, Any], model: Mapping[str, Any]) -> Path:
    """A model's folder, as seen from where the command ran."""
    return (Path(text(content, "directory")) / name_of(model)).resolve()


def _base(content: Mapping[str, Any], model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first model on the same backend; None where that is the same folder."""
    first = next(one for one in _models(content) if text(one, "backend") == text(model, "backend"))
    return None if _place(content, first) == _place(content, model) else first


def _column(models: Sequence[Mapping[str, Any]], model: Mapping[str, Any], short: bool = False) -> str:
    """The folder, or only its last name, with the backend where there are several."""
    name = Path(name_of(model)).name if short else name_of(model)
    several = len({text(one, "backend") for one in models}) > 1
    return f"{name} ({text(model, 'backend', '?')})" if several else name


def _over(models: Sequence[Mapping[str, Any]], model: Mapping[str, Any], base: Mapping[str, Any], key: str) -> str:
    """The ratio to a model: the measured one where there is one, which is always to the first of the file."""
    measured = _measured_ratio(model, key) if base is models[0] else ""
    if measured or key in _NO_RATIO:
        return measured
    return ratio(_figures(base).get(key), _figures(model).get(key))


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
    if "bytes" not in key:
        return values.short(value)
    return values.memory(value) if "memory" in key else values.size(value)


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
            _minutes(number(run.summary, "calibration_seconds")),
            values.short(_rounded(number(run.summary, "tokens_per_s"))),
            values.memory(number(run.summary, "peak_memory_bytes")),
            f"{text(run.summary, 'world_size', '?')} x {text(run.summary, 'device', '?')}",
        )
        for run in runs
        if run.summary
    ]
    if rows:
        yield Table(
            "What training took", ("run", "steps, minutes", "cuts, minutes", "tokens/s", "peak memory", "ranks"), rows
        )


def latency(profiles: Sequence[Written], folders: Sequence[Path]) -> tuple[str, str, str] | None:
    """(name, ratio, its interval and both times in words) of the p50 of a profile, or of another latency that it has:
    the p95 of a few requests is one of them.

    It is of the model in one of `folders` over the first on the same backend; where no profile has one of these, of the
    last model, and both are named. The ratio is the paired one where the profile has it: the quotient of two
    percentiles swings with whatever else the machine did.
    """
    places = {folder.resolve() for folder in folders}
    own = [each for each in profiles if any(_place(each.content, one) in places for one in _models(each.content))]
    for profile in own or profiles:
        models = _models(profile.content)
        for model in models if own else reversed(models):
            base = _base(profile.content, model)
            if base is None or (own and _place(profile.content, model) not in places):
                continue
            if found := _latency(models, model, base, known=bool(own)):
                return found
    return None


def _latency(
    models: Sequence[Mapping[str, Any]], model: Mapping[str, Any], base: Mapping[str, Any], known: bool
) -> tuple[str, str, str] | None:
    """The card; `known`: the page says which model it is of."""
    before, after = _figures(base), _figures(model)
    keys = [key for key in before if key in after and ("p95" in key or "latency" in key)]
    by = lambda k: (not _measured_ratio(model, k), k != "latency_p50", k != "latency_p95", k)  # noqa: E731
    key = min(keys, key=by, default=None)
    if key is None:
        return None
    value, _, interval = _over(models, model, base, key).partition(" (")
    times = [with_unit(key, figures[key]) for figures in (after, before)]
    if known:
        said = f"{times[0]}, was {times[1]}"
        whose = f"{_column(models, model, short=True)}: " if len(models) > 2 else ""
    else:
        names = [_column(models, one, short=True) for one in (model, base)]
        said, whose = ", ".join(f"{name} {time}" for name, time in zip(names, times, strict=True)), ""
    return label(key), value, whose + (f"{interval.rstrip(')')}; {said}" if interval else said)


def ratio(before: float | None, after: float | None) -> str:
    """`0.49 x`; empty where either is unknown."""
    return values.NONE if not before or after is None else f"{after / before:.3g} x"


def _minutes(seconds: float | None) -> str:
    return values.NONE if seconds is None else f"{seconds / 60:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(round(value))
