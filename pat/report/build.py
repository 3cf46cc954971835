"""From the sources to a page: the decision, key figures, and sections in the order of the questions."""

from __future__ import annotations

from collections.abc import Iterator

from pat.report import cost, decision, lineage, quality, sweep, training, values
from pat.report.page import Card, Page
from pat.report.sources import Run, Sources
from pat.report.values import get, mapping, number, sequence, text

WORST = 5  # regressive prompts of an outcome


def page(sources: Sources, worst: int = WORST, title: str | None = None) -> Page:
    """The report. ValueError for keep flags that cannot be read."""
    sections = [
        sweep.section(sources),
        quality.section(sources),
        cost.section(sources),
        training.training(sources),
        training.sparsity(sources),
        quality.regressions(sources, worst),
        lineage.lineage(sources),
        lineage.commands(sources),
    ]
    return Page(
        title=title or _title(sources),
        what=lineage.what(sources),
        decision=decision.decide(sources),
        cards=list(_cards(sources)),
        sections=[section for section in sections if section is not None],
    )


def _title(sources: Sources) -> str:
    if sources.subject is not None:
        return sources.subject.name
    if sources.sweeps:
        return f"Sweep {text(sources.sweeps[0].content, 'name') or sources.sweeps[0].path.name}"
    return "Comparison" if sources.comparisons or sources.logs else "Report"


def _cards(sources: Sources) -> Iterator[Card]:
    """At most six key figures."""
    subject = sources.subject
    if subject is not None and (found := quality.headline(subject)):
        name, value, before = found
        began = "" if before is None else f"{values.short(before)} {subject.began}"
        yield Card(name, values.short(value), quality.dense(sources, name) or began)
    for written in sources.telling[:1]:
        for outcome in sequence(written.content, "outcomes")[:2]:
            overall = mapping(outcome, "overall")
            by, low, high = (number(overall, f"found.{key}") for key in ("difference", "low", "high"))
            interval = "of one prompt" if low is None else f"{values.signed(low)} to {values.signed(high)}"
            yield Card(f"{text(outcome, 'name')}, change", values.signed(by), interval)
    if sources.judging:
        checks = [check for gate in sources.judging for check in sequence(gate.content, "checks")]
        passed = sum(get(check, "passed") is True for check in checks)
        yield Card("checks passed", f"{passed} of {len(checks)}")
    if subject is not None:
        content = subject.summary if isinstance(subject, Run) else subject.export
        prunable, sparsity = number(content, "prunable_parameters"), number(content, "sparsity")
        if prunable and sparsity is not None:
            yield Card("sparsity", values.percent(sparsity), f"of {prunable:,.0f} prunable weights")
    own = [one for one in sources.variants if one is subject or (isinstance(subject, Run) and subject.became(one))]
    for variant in own[:1]:
        before, after = (number(variant.export, f"{when}.bytes") for when in ("before", "after"))
        if before and after is not None:
            yield Card("size", values.size(after), f"{cost.ratio(before, after)} of {values.size(before)}")
    named = [subject.path] if subject is not None else []
    named += [gate.folder for gate in sources.judging[:1] if text(gate.content, "variant.folder")]
    if found := cost.latency([each for each in sources.profiles if not sources.stale(each)], named):
        yield Card(*found)
