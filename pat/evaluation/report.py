"""Figures on the terminal. What models and mixes contain is printed as it is, never as markup or control codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pat.common.text import plain, span
from pat.evaluation.figures import Figure
from pat.evaluation.groups import Bias
from pat.evaluation.on_mix import MixEvaluation
from pat.statistics.estimates import Estimate

SHOWN = 200  # characters of a prompt or an output


def per_slice(models: Sequence[tuple[str, Sequence[Figure]]], confidence: float, whole: bool) -> Iterator[Any]:
    """A table for each figure, with a line for each slice and a column for each model. `whole`: also the figure over
    all."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(figure.name for _, each in models for figure in each))
    for name in names:
        found = [(folder, next((one for one in each if one.name == name), None)) for folder, each in models]
        known = [one for _, one in found if one is not None]
        slices = list(dict.fromkeys(slice_ for one in known for slice_ in one.slices))
        if not (slices or whole):
            continue
        way = "higher is better" if known[0].higher_is_better else "lower is better"
        any_interval = any(cell.low is not None for one in known for cell in (one.overall, *one.slices.values()))
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"{name} ({way}), {confidence:.0%} intervals" if any_interval else f"{name} ({way})",
            title_justify="left",
        )
        table.add_column("slice")
        table.add_column("n", justify="right")
        for folder, _ in found:
            table.add_column(Text(plain(folder)), justify="right", overflow="fold")
        for slice_ in (None, *slices):
            cells = [
                None if one is None else one.overall if slice_ is None else one.slices.get(slice_) for _, one in found
            ]
            n = next((cell.n for cell in cells if cell is not None), 0)
            table.add_row(Text(plain(slice_ or "all")), f"{n:,}", *map(_cell, cells))
        yield table


def mix_blocks(found: Sequence[MixEvaluation], confidence: float, worst: int) -> Iterator[Any]:
    """The parts that rich prints, in order."""
    from rich.text import Text

    yield Text(f"{found[0].prompts:,} prompts, {plain(found[0].data)}")
    yield from per_slice([(one.folder, one.figures) for one in found], confidence, whole=True)
    for one in found:
        if one.bias:
            yield _bias(one.folder, one.bias, confidence)
        if worst and one.failures:
            yield Text(f"{plain(one.folder)}: {len(one.failures):,} prompts failed; the first:")
            for failure in one.failures[:worst]:
                head = f"  {failure.id}  {', '.join(failure.slices)}\n"
                said = f"    prompt  {failure.prompt}\n    output  {failure.output}\n    why     {failure.why}"
                yield Text(plain(head) + "\n".join(plain(line, SHOWN) for line in said.splitlines()))


def _bias(folder: str, found: Sequence[Bias], confidence: float) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tests = ", ".join(dict.fromkeys(one.found.test for one in found))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"Paired groups: {plain(folder)}"),
        title_justify="left",
        caption=f"p: {tests}; adjusted for the number of groups (Holm)",
        caption_justify="left",
    )
    for column in (
        "figure",
        "groups",
        "pairs",
        "first",
        "second",
        "second - first",
        f"{confidence:.0%} interval",
        "p",
        "",
    ):
        table.add_column(column, justify="left" if column in ("figure", "groups", "") else "right")
    for one in found:
        table.add_row(
            one.measure,
            Text(plain(f"{one.dimension}: {one.a}, {one.b}")),
            f"{one.found.n:,}",
            f"{one.found.a:.4g}",
            f"{one.found.b:.4g}",
            f"{one.found.difference:+z.4g}",
            span(one.found.low, one.found.high),
            f"{one.p_adjusted:.2g}",
            Text(plain(f"{one.worse} fares worse" if one.worse else "")),
        )
    return table


def _cell(found: Estimate | None) -> str:
    if found is None:
        return "-"
    spread = "" if found.low is None or found.high is None else f" ({found.low:.4g} to {found.high:.4g})"
    return f"{found.value:.4g}{spread}"
