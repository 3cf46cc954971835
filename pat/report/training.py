"""Training curves with their phases, and sparsity per layer and kind, as pictures with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pat.common.text import plain
from pat.report import curves, kept, pictures, values
from pat.report.curves import Chart
from pat.report.page import Block, Heading, Picture, Section, Table, Text
from pat.report.sources import Run, Sources, Variant
from pat.report.values import mapping

ROWS = 12  # of the numbers of a curve
LAYERS = 64  # of a heat map; beyond it neighbours would not be told apart


def training(sources: Sources) -> Section:
    """A picture for loss, each metric and sparsity of each run."""
    blocks: list[Block] = []
    for i, run in enumerate(sources.runs):
        charts = curves.charts(run.lines)
        if len(sources.runs) > 1:
            blocks.append(Heading(run.name))
        if not charts:
            blocks.append(Text(f"{run.name} has logged too little for a curve."))
        blocks += [_curve(run, chart, i) for chart in charts]
        if len(phases := curves.phases(run.lines)) > 1 and charts:
            told = "; ".join(f"{phase.name} to step {phase.end:.0f}" for phase in phases)
            blocks.append(Text(f"Phases of {run.name}: {told}."))
    if not sources.runs:
        blocks.append(Text("No run is given, so there are no training curves: give its directory, too."))
    elif not pictures.available():
        blocks.append(Text(pictures.MISSING))
    return Section("training", "Training", blocks)


def sparsity(sources: Sources) -> Section:
    """The sparsity per layer and kind."""
    blocks: list[Block] = []
    models = [one for one in sources.measured if one.is_pruned]
    for i, model in enumerate(models):
        found = list(_where(model, i))
        blocks += [Heading(model.name), *found] if found and len(models) > 1 else found
    if not models:
        said = "Nothing that is given was pruned." if sources.models else "No run and no export is given."
        blocks.append(Text(f"{said} So there is no sparsity to show."))
    elif not blocks:
        blocks.append(Text("No keep flags are on disk: an export has them (masks.safetensors), so give one, too."))
    return Section("sparsity", "Sparsity per layer", blocks)


def _curve(run: Run, chart: Chart, position: int) -> Picture:
    name = f"{chart.name}-{position}"
    drawn = Chart(name, chart.title, chart.series, chart.share)
    ends = "; ".join(_ends(chart, one) for one in chart.series)
    phases = ", ".join(f"{phase.name} until {phase.end:.0f}" for phase in curves.phases(run.lines))
    alt = f"{chart.title} of {run.name} over the steps: {ends}." + (f" Phases: {phases}." if phases else "")
    svg = pictures.curves(drawn, curves.phases(run.lines))
    return Picture(name, chart.title, alt, svg, _numbers(chart, f"{chart.title}, {run.name}"))


def _ends(chart: Chart, one: curves.Series) -> str:
    """`training from 0.7 at step 10 to 0.2 at step 60`."""
    (first, began), (last, ended) = one.points[0], one.points[-1]
    if len(one.points) == 1:
        return f"{one.name} {_value(chart, ended)} at step {last:.0f}"
    return f"{one.name} from {_value(chart, began)} at step {first:.0f} to {_value(chart, ended)} at step {last:.0f}"


def _numbers(chart: Chart, caption: str) -> Table:
    """The curve as a table: some of its steps."""
    every = sorted({x for one in chart.series for x, _ in one.points})
    step = max(1, -(-(len(every) - 1) // (ROWS - 1))) if len(every) > 1 else 1
    steps = sorted(
        {*every[::step], every[-1], *(x for one in chart.series if len(one.points) <= 4 for x, _ in one.points)}
    )
    by_step = [dict(one.points) for one in chart.series]
    rows = [(f"{x:.0f}", *("" if x not in own else _value(chart, own[x]) for own in by_step)) for x in steps]
    return Table(caption, ("step", *(one.name for one in chart.series)), rows)


def _value(chart: Chart, value: float) -> str:
    return values.percent(value) if chart.share else values.short(value)


def _where(model: Run | Variant, position: int) -> Iterator[Block]:
    counts = kept.counts(model)
    if counts:
        yield from _heat_map(model.name, counts, position)
    units = list(kept.kept_units(mapping(_summary(model), "kept_units")))
    for pruner, structure, numbers in units:
        yield Table(
            f"{structure} kept in each place (pruner {pruner})",
            ("place", "kept"),
            [(str(i), f"{n:,}") for i, n in enumerate(numbers)],
        )


def _heat_map(name: str, counts: Sequence[kept.Count], position: int) -> Iterator[Block]:
    layers, kinds = kept.layers(counts), list(dict.fromkeys(count.kind for count in counts))
    by_place = {(count.layer, count.kind): count for count in counts}
    rows = [
        (layer, *(values.percent(found.sparsity) if (found := by_place.get((layer, kind))) else "" for kind in kinds))
        for layer in layers
    ]
    total, removed = sum(c.total for c in counts), sum(c.removed for c in counts)
    most, least = max(counts, key=lambda c: c.sparsity), min(counts, key=lambda c: c.sparsity)
    ends = (
        f"most in {most.kind} of layer {most.layer} ({values.percent(most.sparsity)}), least in {least.kind} of layer "
        f"{least.layer} ({values.percent(least.sparsity)})"
    )
    if most.sparsity == least.sparsity:
        ends = f"{values.percent(most.sparsity)} everywhere"
    alt = f"Share removed of each kind in each layer of {name}, in percent: {ends}; {removed:,} of {total:,} in all."
    shown = [kept.Count(plain(c.kind), c.layer, c.removed, c.total) for c in counts]
    svg = pictures.heat_map(shown, str(position)) if len(layers) <= LAYERS else None
    numbers = Table(f"Share removed in {name}", ("layer", *kinds), rows)
    title = "Removed, in percent, by layer and kind"
    yield Picture(f"kept-{position}", title, alt, svg, numbers)
    if len(kinds) > 1:
        each = [(kind, [c for c in counts if c.kind == kind]) for kind in kinds]
        of_kind = [
            (kind, f"{sum(c.removed for c in own):,}", f"{sum(c.total for c in own):,}",
             values.percent(sum(c.removed for c in own) / max(1, sum(c.total for c in own))))
            for kind, own in each
        ]  # fmt: skip
        yield Table(f"By kind in {name}", ("kind", "removed", "of", "share"), of_kind)


def _summary(model: Run | Variant) -> object:
    return model.summary if isinstance(model, Run) else {}
