"""A comparison on the terminal. What models and logs contain is printed as it is, never as markup or control codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pat.common.text import plain, span
from pat.compare.on_logs import LogComparison, OutcomeSoFar
from pat.compare.result import Compared, Comparison

SHOWN = 400  # characters of a prompt or an output
FLOOR = 1e-4  # p-values below it are printed as that


def blocks(found: Comparison, worst: int) -> Iterator[Any]:
    """The parts that rich prints, in order."""
    from rich.text import Text

    yield Text(f"A: {found.a}\nB: {found.b}\n{found.prompts:,} {found.what}, {found.data}")
    for compared in found.outcomes:
        yield _table(compared, found.confidence, found.what)
        if compared.table is not None:
            t = compared.table
            yield Text(
                f"  right in both {t['both']}, only in A {t['only_a']}, only in B {t['only_b']}, in "
                f"neither {t['neither']}"
            )
    yield Text(_apart(found))
    for note in found.notes:
        yield Text(f"note: {note}")
    for compared in found.outcomes:
        yield from _regressions(compared, worst, found.what)


def log_blocks(found: LogComparison, worst: int) -> Iterator[Any]:
    """The same for logs."""
    from rich.text import Text

    yield Text(f"A: {found.a}\nB: {found.b}")
    for outcome in found.watched:
        yield from _so_far(outcome, found, worst)


def _so_far(outcome: OutcomeSoFar, found: LogComparison, worst: int) -> Iterator[Any]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    pairs = f", paired, {outcome.unmatched:,} without a partner" if found.paired else ""
    waiting = " and ".join(f"{number:,}" for number in outcome.waiting)
    yield Text(f"\n{plain(outcome.name)}{pairs}; without a value yet: {waiting}")
    adjusted = "p, unlike the sequences, is adjusted for the number of outcomes or of slices (Holm)"
    said = f"valid at every look; effect to find soonest: {outcome.effect:g}; {adjusted}"
    table = Table(box=box.SIMPLE_HEAD, caption=said, caption_justify="left")
    for column in ("slice", "rows A", "rows B", "A", "B", "B - A", f"{found.confidence:.0%} sequence", "p", "verdict"):
        table.add_column(
            column, justify="left" if column in ("slice", "verdict") else "right", no_wrap=column != "slice"
        )
    for one in (outcome.overall, *outcome.slices):
        at = one.look
        table.add_row(
            Text(plain(one.name)),
            f"{at.a_n:,}",
            f"{at.b_n:,}",
            f"{at.a:.4g}",
            f"{at.b:.4g}",
            f"{at.difference:+z.4g}",
            "too few yet" if math.isinf(at.low) else f"{at.low:+z.4g} to {at.high:+z.4g}",
            _p(one.p_adjusted),
            one.verdict or "nothing yet",
        )
    yield table
    if outcome.regressions:
        yield Text(f"Right in A and wrong in B: {len(outcome.regressions):,}")
    for one in outcome.regressions[:worst]:
        yield _both(", ".join(one["slices"]), one["prompt"], one["a"], one["b"])


def _table(compared: Compared, confidence: float, what: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    way = "higher is better" if compared.higher_is_better else "lower is better"
    tests = dict.fromkeys(one.found.test for one in (compared.overall, *compared.slices))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{compared.name} ({way})",
        title_justify="left",
        caption=f"p: {', '.join(tests)}; of slices adjusted for their number (Holm). "
        "The verdict is p's; intervals are of each slice alone",
        caption_justify="left",
    )
    for column in ("slice", what, "A", "B", "B - A", f"{confidence:.0%} interval", "p", ""):
        table.add_column(column, justify="left" if column in ("slice", "") else "right", no_wrap=column != "slice")
    for one in (compared.overall, *compared.slices):
        found = one.found
        table.add_row(
            Text(plain(one.name)),
            f"{found.n:,}",
            f"{found.a:.4g}",
            f"{found.b:.4g}",
            f"{found.difference:+z.4g}",
            span(found.low, found.high),
            _p(one.p_adjusted),
            one.verdict,
        )
    return table


def _apart(found: Comparison) -> str:
    parts = []
    if found.agreement is not None:
        parts.append(f"agreement of outputs {found.agreement:.1%}")
    if found.kl is not None:
        parts.append(f"KL(A || B) {found.kl:.4g} nats")
    if found.first_difference is not None:
        parts.append(f"first differing token (median where they differ) {found.first_difference:g}")
    return "; ".join(parts)


def _regressions(compared: Compared, worst: int, what: str) -> Iterator[Any]:
    from rich.text import Text

    if not compared.num_regressions or not worst:
        return
    how = "right in A and wrong in B" if compared.table is not None else "worse in B"
    yield Text(f"\n{compared.name}: {compared.num_regressions:,} {what} are {how}; the worst first:")
    for one in compared.regressions[:worst]:
        pair = one.pair
        head = f"{pair.id}  {', '.join(pair.slices)}"
        if compared.table is None:
            head += f"  {compared.name} {one.a:.4g} -> {one.b:.4g}"
        yield _both(head, pair.prompt, pair.a, pair.b, pair.why, what.removesuffix("s"))


def _both(head: str, prompt: str, a: str, b: str, why: str | None = None, what: str = "prompt") -> Any:
    from rich.text import Text

    text = Text(f"\n{plain(head)}\n", style="bold")
    for name, content in ((what, prompt), ("A", a), ("B", b), ("why", why or "")):
        if content or name in "AB":
            text.append(f"  {name:<7}", style="not bold dim").append(
                plain(content, SHOWN).replace("\n", f"\n{' ' * 9}") + "\n", style="not bold"
            )
    return text


def _p(p: float) -> str:
    return f"< {FLOOR:g}" if p < FLOOR else f"{p:.2g}"
