"""Quality: metrics side by side, differences with intervals per slice, and the prompts that became worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pat.common.text import plain
from pat.report import decision, harness, pictures, slices, values
from pat.report.page import Block, Bullets, Heading, Picture, Prompt, Prompts, Section, Table, Text
from pat.report.sources import Run, Sources, Variant, without_training
from pat.report.values import get, mapping, number, sequence, text

SHOWN = 1200  # characters of a prompt or an output
HOW = "pat compare DENSE PRUNED --json FILE"


def section(sources: Sources) -> Section:
    """Everything that says how good the models are."""
    blocks: list[Block] = []
    blocks += _gates(sources)
    blocks += _metrics(sources)
    blocks += harness.blocks(sources)
    of_slices = list(slices.blocks(sources))
    blocks += of_slices
    for number_, written in enumerate(sources.comparisons, 1):
        blocks += _comparison(written.content, number_)
    blocks += [Text(said) for each in (*sources.comparisons, *sources.evaluations) if (said := sources.stale(each))]
    for written in sources.logs:
        blocks += _logs(written.content)
    if not sources.comparisons and not sources.logs:
        unknown = "no difference is tested" if of_slices else "nothing is known per slice"
        blocks.append(Text(f"No comparison is given, so {unknown}: {HOW}, and give FILE, too."))
    return Section("quality", "Quality", blocks)


def regressions(sources: Sources, worst: int) -> Section:
    """Both outputs of the prompts that were right before and are wrong now."""
    blocks: list[Block] = []
    for written in sources.comparisons:
        for outcome in sequence(written.content, "outcomes"):
            blocks += _regressions(written.content, outcome, worst)
    for written in sources.logs:
        for outcome in sequence(written.content, "watched"):
            rows = [one for one in sequence(outcome, "regressions") if isinstance(one, Mapping)][:worst]
            if rows:
                blocks.append(Heading(f"{text(outcome, 'name', 'the outcome')}: right in A and wrong in B"))
                items = [_prompt("", one, _slices(one), text(one, "prompt")) for one in rows]
                blocks.append(Prompts(*values.both(written.content), items))
    if not blocks:
        given = sources.comparisons or sources.logs
        said = "The comparison has no prompt that became worse." if given else f"No comparison is given: {HOW}."
        if sources.logs and not any(get(written.content, "paired") for written in sources.logs):
            said = "Not known: the rows of the logs are not paired (pat compare --from-logs ... --key COLUMN)."
        blocks.append(Text(said))
    return Section("regressions", "Prompts that became worse", blocks)


def _gates(sources: Sources) -> Iterator[Block]:
    for gate in sources.gates:
        checks = [check for check in sequence(gate.content, "checks") if isinstance(check, Mapping)]
        rows = [
            (
                text(check, "name", "a check"),
                values.short(number(check, "n")),
                *(decision.of_figure(check, key) for key in ("baseline", "measured")),
                text(check, "rule") or f"limit {decision.shown(get(check, 'limit'))}",
                decision.shown(get(check, "quantity")),
                decision.shown(get(check, "interval")),
                "passed" if check.get("passed") is True else "failed",
            )
            for check in checks
        ]
        if rows:
            of = text(gate.content, "variant.folder", "a model")
            other = "" if gate in sources.judging else ", which this page is not about, so it decides nothing here"
            caption = f"The gate of {of}{other} (FIGURE.BOUND as in the envelope; n: samples or prompts)"
            yield Table(caption, ("check", "n", "baseline", "measured", "must be", "is", "interval", ""), rows)


def _metrics(sources: Sources) -> Iterator[Block]:
    """A row for each metric, a column for each model: of runs, exports and `pat evaluate`."""
    columns: list[tuple[str, dict[str, float]]] = []
    for model in sources.measured:
        before, now = values.numbers(model.before), values.numbers(model.metrics)
        if before and now and len(sources.measured) == 1:
            columns.append(("when pruning began", before))
        if now:
            columns.append((sources.label(model), now))
    for written in sources.evaluations:
        for one in sequence(written.content, "models"):
            metrics, folder = values.numbers(mapping(one, "metrics")), text(one, "folder", "a model")
            if metrics and not any(_same(folder, metrics, model) for model in sources.measured):
                step = get(one, "step")  # of the best checkpoint, where a run's own metrics are those of its last step
                columns.append((folder if step is None else f"{folder}, evaluated at step {step}", metrics))
    warned: dict[str, list[str]] = {}
    for run in sources.runs:
        for said in run.warnings:
            warned.setdefault(said, []).append(run.name)
    if warned:
        yield Bullets([f"{' and '.join(names)} warned when starting: {said}" for said, names in warned.items()])
    names = list(dict.fromkeys(name for _, metrics in columns for name in metrics))
    if not columns:
        if not sources.evaluations and (sources.models or not sources.sweeps):
            going_on = any(not run.is_over for run in sources.runs)
            yield Text("Not evaluated yet." if going_on else "No run or export that is given was evaluated.")
        return
    rows = [(name, *(values.short(metrics.get(name)) for _, metrics in columns)) for name in names]
    yield Table("Metrics on held-out data", ("metric", *(name for name, _ in columns)), rows)
    if columns[0][0] == "when pruning began" and not without_training(sources.measured[0]):
        yield Text(
            "When pruning began, the run had trained for fewer steps: for what pruning costs, compare with a "
            "run of as many steps that prunes nothing."
        )
    if any(get(written.content, "same_data") is False for written in sources.evaluations):
        yield Text("These models were evaluated on different data, so their figures do not compare.")


def _same(folder: str, metrics: Mapping[str, float], model: Run | Variant) -> bool:
    """Whether a model that was evaluated is this one, or the run that it is of, with the same figures to read."""
    known = values.numbers(model.metrics)
    run = text(model.export, "lineage.directory") if isinstance(model, Variant) else ""
    is_it = Path(folder).resolve() == model.path.resolve() or Path(folder).name == run
    return is_it and all(
        name in known and values.short(value) == values.short(known[name]) for name, value in metrics.items()
    )


def _comparison(content: Mapping[str, Any], position: int) -> Iterator[Block]:
    what = text(content, "what", "prompts")
    yield Heading(f"Compared on the same {what}" + (f" ({position})" if position > 1 else ""))
    yield Text(
        f"A is {text(content, 'a', '?')}, B is {text(content, 'b', '?')}: {text(content, 'prompts', '?')} {what}, "
        f"{text(content, 'data', 'unnamed data')}."
    )
    apart = []
    if (agreement := number(content, "agreement")) is not None:
        apart.append(f"The outputs agree on {values.percent(agreement)}.")
    if (kl := number(content, "kl")) is not None:
        apart.append(f"KL(A || B) is {values.short(kl)} nats.")
    if (first := number(content, "first_difference")) is not None:
        apart.append(f"Where outputs differ, token {values.short(first)} is the first that does (median, from 0).")
    apart += [str(note) for note in sequence(content, "notes")]
    if apart:
        yield Bullets(apart)
    confidence = number(content, "confidence") or 0.95
    blocks = [
        block
        for i, outcome in enumerate(sequence(content, "outcomes"))
        for block in _outcome(outcome, confidence, f"{position}-{i}", what)
    ]
    yield from sorted(blocks, key=lambda block: not isinstance(block, Picture))  # side by side


def _outcome(outcome: Any, confidence: float, name: str, what: str) -> Iterator[Block]:
    title = text(outcome, "name", "outcome")
    way = "higher is better" if get(outcome, "higher_is_better") else "lower is better"
    slices = [mapping(outcome, "overall"), *(one for one in sequence(outcome, "slices") if isinstance(one, Mapping))]
    head = ("slice", what, "A", "B", "B - A", f"{confidence:.0%} interval", "p", "verdict")
    rows = [
        (
            text(one, "name", "all"),
            *(values.short(number(one, f"found.{key}")) for key in ("n", "a", "b")),
            values.signed(number(one, "found.difference")),
            _interval(one),
            _p(number(one, "p_adjusted")),
            text(one, "verdict") or "no difference found",
        )
        for one in slices
    ]
    numbers = Table(f"{title} ({way}); the verdict is p's, which is adjusted for the number of slices", head, rows)
    drawn = [
        (plain(text(one, "name", "all")), *bounds, text(one, "verdict"))
        for one in slices
        if (bounds := _bounds(one)) is not None
    ]
    worse = [row[0] for row in rows if row[-1] == "worse"]
    if drawn:
        alt = f"{title}, B - A per slice with intervals. Worse: {', '.join(worse) or 'none'}."
        svg = pictures.intervals(drawn, f"B - A ({way})", name)
        yield Picture(f"intervals-{name}", f"{title}: difference per slice", alt, svg)
    yield numbers
    counts = mapping(outcome, "table")
    if counts:
        yield Text(
            f"{title}: right in both {text(counts, 'both')}, only in A {text(counts, 'only_a')}, only in B "
            f"{text(counts, 'only_b')}, in neither {text(counts, 'neither')}."
        )


def _logs(content: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading("Compared in production")
    a, b = text(content, "a", "?"), text(content, "b", "?")
    yield Text(
        f"A is {a}, B is {b}. The test may be looked at every day. p is adjusted for the number of outcomes, or of "
        f"their slices (Holm); the {number(content, 'confidence') or 0.95:.0%} confidence sequences are not."
    )
    for outcome in sequence(content, "watched"):
        yield _watched(outcome)


def _watched(outcome: Any) -> Table:
    rows = []
    for one in [mapping(outcome, "overall"), *sequence(outcome, "slices")]:
        low, high = number(one, "look.low"), number(one, "look.high")
        interval = "too few yet" if low is None else f"{values.signed(low)} to {values.signed(high)}"
        cells = (values.short(number(one, f"look.{key}")) for key in ("a_n", "b_n", "a", "b"))
        by, p = values.signed(number(one, "look.difference")), _p(number(one, "p_adjusted"))
        rows.append((text(one, "name", "all"), *cells, by, interval, p, text(one, "verdict") or "nothing yet"))
    head = ("slice", "rows A", "rows B", "A", "B", "B - A", "confidence sequence", "p", "verdict")
    return Table(f"{text(outcome, 'name', 'the outcome')} per slice", head, rows)


def _regressions(content: Mapping[str, Any], outcome: Any, worst: int) -> Iterator[Block]:
    found = [one for one in sequence(outcome, "regressions") if isinstance(one, Mapping)]
    many = int(number(outcome, "num_regressions") or len(found))
    if not found:
        return
    name, binary = text(outcome, "name", "the outcome"), get(outcome, "table") is not None
    yield Heading(f"{name}: {many:,} {'right in A and wrong in B' if binary else 'worse in B'}")
    if not worst:
        return
    if many > worst:
        yield Text(f"The worst {min(worst, len(found))} are shown; the JSON of pat compare has more.")
    items = []
    for one in found[:worst]:
        pair = mapping(one, "pair")
        change = "" if binary else f"{name} {values.short(number(one, 'a'))} to {values.short(number(one, 'b'))}"
        where = ", ".join(filter(None, [_slices(pair), change]))
        items.append(_prompt(text(pair, "id"), pair, where, text(pair, "prompt")))
    yield Prompts(*values.both(content), items)


def _prompt(name: str, one: Mapping[str, Any], where: str, prompt: str) -> Prompt:
    a, b, why = (plain(text(one, key), SHOWN) for key in ("a", "b", "why"))
    return Prompt(plain(name), plain(where), plain(prompt, SHOWN), a, b, why)


def _slices(one: Mapping[str, Any]) -> str:
    return ", ".join(map(str, sequence(one, "slices")))


def _bounds(one: Mapping[str, Any]) -> tuple[float, float, float] | None:
    low, middle, high = (number(one, f"found.{key}") for key in ("low", "difference", "high"))
    return None if low is None or middle is None or high is None else (low, middle, high)


def _interval(one: Mapping[str, Any]) -> str:
    bounds = _bounds(one)
    return values.NONE if bounds is None else f"{values.signed(bounds[0])} to {values.signed(bounds[2])}"


def _p(p: float | None) -> str:
    return values.NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def dense(sources: Sources, metric: str) -> str | None:
    """What a model has that was not pruned: one that is given, or else a gate's baseline."""
    for one in sources.models:
        if not one.is_pruned and one is not sources.subject and metric in one.metrics:
            return f"{values.short(number(one.metrics, metric))} in {sources.label(one)}, not pruned"
    for gate in sources.judging:
        for check in sequence(gate.content, "checks"):
            baseline = number(check, "baseline")
            if text(check, "name").partition(".")[0] == metric and baseline is not None:
                return (
                    f"{values.short(baseline)} in {values.last(text(gate.content, 'baseline.folder', 'the baseline'))}"
                )
    return None


def headline(model: Run | Variant | None) -> tuple[str, float, float | None] | None:
    """(name, value, value when pruning began) of the metric by which a run is judged, or else of the first."""
    if model is None:
        return None
    metrics, before = values.numbers(model.metrics), values.numbers(model.before)
    wanted: Sequence[str] = (text(model.config, "train.best_metric"), *(n for n in metrics if n != "loss"), "loss")
    name = next((each for each in wanted if each in metrics), None)
    return None if name is None else (name, metrics[name], before.get(name))
