"""A monitor's findings as people read them: on the terminal, and on a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pat.common.text import plain
from pat.monitor.result import AGREEMENT, OUTPUTS, REPLAY, Check, Monitored
from pat.report import values

FLOOR = 1e-4  # p-values below it are printed as that
SHOWN = 400  # characters of a prompt or an output on the terminal
HEAD = ("check", "figure", "then", "now", "distance", "test", "p", "verdict")
ABOUT = (
    "then: the reference, of outputs the older rows, of replays the dense model; p is corrected for the number of "
    "checks (Holm)"
)


def row(check: Check) -> tuple[str, ...]:
    """A line of the table of checks."""
    change = check.change
    name, *both = change if change else ("", None, None)
    show = values.percent if check.share else values.short
    return (
        title(check),
        plain(name),
        *(values.NONE if value is None else show(value) for value in both),
        values.short(check.found.statistic),
        check.found.test,
        p(check.p_adjusted),
        "alert" if check.alert else "",
    )


def title(check: Check) -> str:
    """GROUP: NAME, as `outputs: latency_ms`, without control characters."""
    return plain(f"{check.group}: {check.name}")


def p(value: float) -> str:
    """Two digits; small ones as below FLOOR."""
    return f"< {FLOOR:g}" if value < FLOOR else f"{value:.2g}"


def sentence(check: Check) -> str:
    """An alert in a sentence."""
    change = check.change
    if change is None:
        return f"{title(check)}: further apart than chance explains, {_p(check)}"
    show = values.percent if check.share else values.short
    name, then, now = change
    of = {OUTPUTS: "before", REPLAY: "in the dense model"}.get(check.group, "in the reference")
    of = "asked for" if check.name == AGREEMENT else of
    return f"{title(check)}: {plain(name)} {show(now)}, {of} {show(then)}, {_p(check)}"


def _p(check: Check) -> str:
    said = p(check.p_adjusted)
    return f"p {said}" if said.startswith("<") else f"p = {said}"


def blocks(found: Monitored, worst: int) -> Iterator[Any]:
    """The parts that rich prints, in order. What logs contain is printed as it is, never as markup or control codes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    yield Text(plain(about(found)))
    table = Table(box=box.SIMPLE_HEAD, caption=ABOUT, caption_justify="left")
    for name in HEAD:
        table.add_column(name, justify="right" if name in ("then", "now", "distance", "p") else "left")
    for check in found.checks:
        table.add_row(*map(Text, row(check)))
    yield table
    if found.replayed is not None:
        yield Text(plain(replayed(found)))
        for one in found.replayed.worst[:worst]:
            head = "right before, wrong now" if one.regressive else "differs"
            yield Text(plain(f"\n{head}: {one.id}  {', '.join(one.slices)}"), style="bold")
            for name, content in (("prompt", one.prompt), ("A", one.a), ("B", one.b), ("why", one.why)):
                if content:
                    yield Text(f"  {name:<7}{plain(content, SHOWN)}".replace("\n", f"\n{' ' * 9}"))
    for note in found.notes:
        yield Text(plain(f"note: {note}"))
    if found.alerts:
        yield Text("\n".join(["alert:", *(f"  {sentence(check)}" for check in found.alerts)]), style="bold")
    else:
        yield Text("no alert")


def about(found: Monitored) -> str:
    """A sentence on what was compared."""
    then = "" if found.then is None or found.then == found.reference else f"\noutputs then: {found.then}"
    return f"now: {found.now} ({found.rows:,} rows)\nreference: {found.reference}{then}\nmodel: {found.against}"


def replayed(found: Monitored) -> str:
    """The result of the replay, in sentences."""
    of = found.replayed
    assert of is not None
    parts = [f"{of.prompts:,} prompts were replayed on {of.dense} (A) and {found.against} (B)"]
    if of.agreement is not None:
        parts.append(f"the outputs agree on {values.percent(of.agreement)}")
    if of.kl is not None:
        parts.append(f"KL(A || B) is {values.short(of.kl)} nats")
    if of.checked:
        parts.append(f"of {of.checked:,} with a right answer, {of.regressive:,} were right in A and are wrong in B")
    else:
        parts.append("no prompt says what a right answer is, so none is known to be regressive")
    return "; ".join(parts) + "."
