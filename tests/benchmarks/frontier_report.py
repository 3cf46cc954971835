"""The frontier's rows as a table and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pat.sensitivity.plot import available
from tests.benchmarks.commands import spread

HIGHER_IS_BETTER = ("accuracy",)
BEGIN, END = "<!-- table -->", "<!-- end of table -->"  # marks in the page
BUDGETS = (0, 10, 100, 1000)  # ticks of the picture, steps
PANEL = (4.6, 3.4)  # inches


@dataclass(frozen=True)
class Line:
    """The seeds of one data set, target, budget and method."""

    data: str
    target: str
    steps: int
    method: str
    metric: str
    values: tuple[float, ...]  # of the seeds that were measured
    nonzero_parameters: int | None
    cpu_seconds: float | None
    error: str | None  # of a seed that was not

    @property
    def mean(self) -> float | None:
        """Over the seeds."""
        return statistics.mean(self.values) if self.values else None


def lines(rows: Iterable[dict[str, Any]]) -> list[Line]:
    """One for each method at each point; the best first, what failed last."""
    grouped: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["data"], row["target"], row["steps"], row["method"]), []).append(row)
    found = []
    for (data, target, steps, method), seeds in grouped.items():
        done = [row for row in seeds if row["value"] is not None]
        times = [row["cpu_seconds"] for row in done if row["cpu_seconds"] is not None]
        found.append(
            Line(
                data,
                target,
                steps,
                method,
                seeds[0]["metric"],
                tuple(row["value"] for row in done),
                done[0]["nonzero_parameters"] if done else None,
                statistics.mean(times) if times else None,
                next((row["error"] for row in seeds if row["error"]), None),
            )
        )
    return sorted(found, key=_place)


def _place(line: Line) -> tuple[Any, ...]:
    value = float("inf") if line.mean is None else -line.mean if line.metric in HIGHER_IS_BETTER else line.mean
    return line.data, line.target != "dense", line.target, line.steps, value


def markdown(table: Sequence[Line]) -> list[str]:
    """The table, as docs/frontier.md has it."""
    head = ["data", "target", "steps", "method", "quality", "spread (seeds)", "not zero", "CPU min"]
    cells = [head, ["---"] * 4 + ["---:"] * 4]
    for line in table:
        quality = "does not run" if line.mean is None else f"{line.metric} {_figure(line.mean, line.metric)}"
        several = len(line.values) > 1
        seeds = f"{_figure(spread(list(line.values)), line.metric)} ({len(line.values)})" if several else "-"
        size = "-" if line.nonzero_parameters is None else f"{line.nonzero_parameters / 1e6:.1f} M"
        minutes = "-" if line.cpu_seconds is None else f"{line.cpu_seconds / 60:.1f}"
        cells.append([line.data, _target(line), str(line.steps), line.method, quality, seeds, size, minutes])
    return [f"| {' | '.join(row)} |" for row in cells]


def into_page(page: Path, text: Sequence[str]) -> None:
    """Replace what stands between the page's two marks."""
    before, rest = page.read_text().split(f"{BEGIN}\n")
    page.write_text("\n".join([f"{before}{BEGIN}", *text, f"{END}{rest.split(END)[1]}"]))


def _target(line: Line) -> str:
    return f"{line.target} %" if line.target.replace(".", "", 1).isdigit() else line.target


def _figure(value: float, metric: str) -> str:
    return f"{value:.4f}" if metric in HIGHER_IS_BETTER else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def picture(table: Sequence[Line], path: Path) -> None:
    """Quality over training steps, one line a method, a panel for each data set and target; PNG."""
    if not available():
        print("no picture: matplotlib is not here; pip install 'pat-deepspeed[plot]' and give --table")
        return
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    points = [line for line in table if line.mean is not None]
    panels = list(dict.fromkeys((line.data, line.target) for line in points if line.target != "dense"))
    if not panels:
        return
    methods = list(dict.fromkeys(line.method for line in sorted(points, key=lambda line: line.method)))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((PANEL[0] * across, PANEL[1] * down), dpi=90, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for (data, target), panel in zip(panels, axes.flat, strict=False):
        for method in methods:
            own = [line for line in points if line.data == data and line.method == method]
            own = sorted((line for line in own if line.target in (target, "dense")), key=lambda line: line.steps)
            if own:
                colour = "black" if method == "dense" else f"C{methods.index(method)}"
                style = {"color": colour, "linestyle": "--" if method == "dense" else "-", "marker": "o"}
                panel.plot([line.steps for line in own], [line.mean for line in own], label=method, **style)
        first = next(line for line in points if line.data == data)
        panel.set_xscale("symlog", linthresh=BUDGETS[1])
        panel.set_xlim(-2, 1.5 * BUDGETS[-1])
        panel.set_xticks(BUDGETS, map(str, BUDGETS))
        if first.metric not in HIGHER_IS_BETTER:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
        panel.set_title(f"{data}, {_target(next(line for line in points if line.target == target))}", fontsize=9)
        panel.set_xlabel("training steps", fontsize=8)
        panel.set_ylabel(first.metric, fontsize=8)
        panel.tick_params(labelsize=7, which="both")
        panel.legend(fontsize=7)
    for panel in list(axes.flat)[len(panels) :]:
        panel.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
