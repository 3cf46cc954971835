"""Measured cells as JSON, CSV and a table; they show by how much the loss rises."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pat.common.files import write_atomic
from pat.pruning.timetable import percent
from pat.sensitivity.cells import Grid
from pat.sensitivity.measure import Metrics, loss_of

Rows = list[dict[str, Any]]
ROUNDING = 0.01  # relative; nearer to the fraction that was asked for, a share is not worth a word


def rows(grid: Grid, measured: Mapping[tuple[str, int], Metrics], baseline: Metrics) -> Rows:
    """One flat mapping for each cell; `increase` is loss - baseline loss, in nats (of a regression the mean square)."""
    return [
        {
            "layer": cell.layer,
            "kind": cell.kind,
            "fraction": cell.fraction,
            "removed": cell.removed,
            "units": cell.units,
            "increase": loss_of(measured[cell.key]) - loss_of(baseline),
            **measured[cell.key],
        }
        for cell in grid.cells
    ]


def write_csv(path: Path, cells: Rows) -> None:
    """A line for each cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(cells[0]))
    writer.writeheader()
    writer.writerows(cells)
    write_atomic(path, file.getvalue())


def short_layers(layers: Sequence[str]) -> list[str]:
    """Their numbers where all are of one stack, else their names."""
    stacks = {layer.rpartition(".")[0] for layer in layers}
    return [layer.rpartition(".")[2] for layer in layers] if len(stacks) == 1 else list(layers)


def few_units(cells: Rows) -> str:
    """`2/3` where whole units are another share than the fraction that was asked for, else "". Of a kind's cells."""
    shares = {cell["removed"] / cell["units"]: f"{cell['removed']}/{cell['units']}" for cell in cells}
    if all(math.isclose(share, cells[0]["fraction"], rel_tol=ROUNDING) for share in shares):
        return ""
    return shares.popitem()[1] if len(shares) == 1 else f"{percent(min(shares))} to {percent(max(shares))}"


def table(cells: Rows, baseline: Metrics) -> Table:
    """Per kind and fraction: the mean over the layers, and the most with the layer that has it.

    Where few units make another share of it than the fraction, a cell says which.
    """
    fractions = sorted({cell["fraction"] for cell in cells})
    layers = list(dict.fromkeys(cell["layer"] for cell in cells))
    names = dict(zip(layers, short_layers(layers), strict=True))
    before = ", ".join(f"{name} {value:.4g}" for name, value in baseline.items())
    shown = Table(title=f"Loss added: mean over layers, most @ layer. Nothing removed: {before}", title_justify="left")
    shown.add_column("removed", no_wrap=True)
    for fraction in fractions:
        shown.add_column(percent(fraction), justify="right", no_wrap=True)
    for kind in dict.fromkeys(cell["kind"] for cell in cells):
        line = []
        for fraction in fractions:
            mine = [cell for cell in cells if cell["kind"] == kind and cell["fraction"] == fraction]
            if not mine:
                line.append("")
                continue
            worst = max(mine, key=lambda cell: (math.isnan(cell["increase"]), cell["increase"]))  # NaN: no loss at all
            mean = sum(cell["increase"] for cell in mine) / len(mine)
            numbers = f"{mean + 0.0:.3f}, {worst['increase']:.3f} @ {names[worst['layer']]}"
            other = few_units(mine)
            line.append((f"{other}: " if other else "") + numbers.replace("-0.000", "0.000"))
        shown.add_row(kind, *line)
    return shown
