"""The rolling page: the last run's findings, and the results of the runs before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pat.common.text import plain
from pat.monitor import words
from pat.monitor.result import Asked, Check, Monitored
from pat.report import pictures, values
from pat.report.curves import Chart, Series
from pat.report.page import (
    Block,
    Bullets,
    Card,
    Decision,
    Facts,
    Heading,
    Page,
    Picture,
    Prompt,
    Prompts,
    Section,
    Table,
    Text,
)

SHOWN = 1200  # characters of a prompt or an output

Runs = Sequence[Mapping[str, Any]]  # of the history, with this one as the last


def page(found: Monitored, runs: Runs, worst: int) -> Page:
    """The page after a run."""
    return Page(
        title=f"Monitor of {values.last(found.against)}",
        what=f"{found.log}, beside {found.reference}; {values.time_of(found.time_s)}.",
        decision=_decision(found),
        cards=list(_cards(found, runs)),
        sections=[
            Section("checks", "Checks", list(_checks(found))),
            Section("replay", "Replayed prompts", list(_replay(found, worst))),
            Section("history", "Run by run", list(_history(runs))),
        ],
        by="pat monitor",
    )


def _decision(found: Monitored) -> Decision:
    if not found.checks:
        return Decision("open", "Nothing checked", "There was nothing to compare.", found.notes)
    if found.alerts:
        sentence = f"{len(found.alerts)} of {len(found.checks)} checks raise an alert."
        return Decision("bad", "Alert", sentence, [words.sentence(check) for check in found.alerts])
    sentence = f"None of {len(found.checks)} checks found more than chance explains (level {found.alpha:g} over all)."
    return Decision("good", "No alert", sentence)


def _cards(found: Monitored, runs: Runs) -> Iterator[Card]:
    yield Card("alerts", f"{len(found.alerts)} of {len(found.checks)}", "checks")
    yield Card("rows", f"{found.rows:,}", "looked at")
    if (replayed := found.replayed) is not None:
        if replayed.agreement is not None:
            yield Card("agreement", values.percent(replayed.agreement), f"of {replayed.prompts:,} replayed prompts")
        if replayed.checked:
            yield Card("regressive prompts", f"{replayed.regressive:,}", f"of {replayed.checked:,}")
    yield Card("runs with an alert", f"{sum(bool(run['alerts']) for run in runs)} of {len(runs)}", "that are kept")


def _checks(found: Monitored) -> Iterator[Block]:
    yield Table(words.ABOUT[0].upper() + words.ABOUT[1:], words.HEAD, [words.row(check) for check in found.checks])
    for check in found.checks:
        if len(check.figures) > 1:
            yield _figures(check)
    yield Facts([("Now", found.now), ("Reference", found.reference), ("Outputs then", found.then or values.NONE),
                 ("Model", found.against)])  # fmt: skip
    if found.notes:
        yield Bullets(found.notes)


def _figures(check: Check) -> Table:
    show = values.percent if check.share else values.short
    rows = [(plain(name), show(then), show(now)) for name, (then, now) in check.figures.items()]
    return Table(words.title(check), ("figure", "then", "now"), rows)


def _replay(found: Monitored, worst: int) -> Iterator[Block]:
    if (replayed := found.replayed) is None:
        yield Text("No prompt was replayed: --dense names the model to ask beside this one.")
        return
    yield Text(words.replayed(found))
    for regressive, title in ((True, "Right before, wrong now"), (False, "Different outputs")):
        some = [one for one in replayed.worst if one.regressive == regressive][:worst]
        if some:
            yield Heading(title)
            yield Prompts(values.last(replayed.dense), values.last(found.against), [_prompt(one) for one in some])


def _prompt(one: Asked) -> Prompt:
    texts = (plain(text, SHOWN) for text in (one.prompt, one.a, one.b, one.why))
    return Prompt(one.id, plain(", ".join(one.slices)), *texts)


def _history(runs: Runs) -> Iterator[Block]:
    names = list(dict.fromkeys(name for run in reversed(runs) for name in run["distances"]))
    if len(runs) > 1:
        yield from (_picture(runs, name, number) for number, name in enumerate(names))
    if len(runs) > 1 and not pictures.available():
        yield Text(pictures.MISSING)
    head = ("time", "model", "rows", "alerts", "agreement", "regressive")
    rows = [
        (
            values.time_of(values.finite(run["time_s"])),
            plain(str(run["against"])),
            values.short(values.finite(run["rows"])),
            plain(", ".join(map(str, run["alerts"]))) or "none",
            values.percent(values.finite(run.get("agreement"))),
            values.short(values.finite(run.get("regressive"))),
        )
        for run in reversed(runs)
    ]
    yield Table("The runs that are kept, the last one first", head, rows)


def _picture(runs: Runs, name: str, number: int) -> Picture:
    found = ((float(i), values.finite(run["distances"].get(name))) for i, run in enumerate(runs, 1))
    points = [(i, value) for i, value in found if value is not None]
    chart = Chart(
        f"distance-{number}", f"Distance of {plain(name)}, run by run", [Series("distance", points, dots=True)]
    )
    said = f"{chart.title}; in the last of {len(runs)}: {values.short(points[-1][1])}." if points else chart.title
    return Picture(chart.name, chart.title, said, pictures.curves(chart, [], "run"))
