"""The frontier's rows as a table and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pat.sensitivity.plot import available
from tests.benchmarks.commands import spread
from tests.benchmarks.frontier_rows import METHODS, PICTURED

HIGHER_IS_BETTER = ("accuracy",)
EVERY = "table"  # of all rows, by its mark in the page
MARK = " †"  # see the page
PANEL = (4.6, 3.4)  # inches
LEFT_OUT = {"alps-64", "alps-16"}  # of the picture, where it would be hidden by its neighbours
MARKERS = "osDPX*"  # of our methods, so that ten colours are enough; a peer's point down
PEERS = "v^<>"


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
    noted: bool = False  # a row of the results has a note: the table marks it

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
                any(row.get("note") for row in seeds),
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
        seeds = f"{_figure(spread(list(line.values)), line.metric, line.mean)} ({len(line.values)})" if several else "-"
        size = "-" if line.nonzero_parameters is None else f"{line.nonzero_parameters / 1e6:.1f} M"
        minutes = "-" if line.cpu_seconds is None else f"{line.cpu_seconds / 60:.1f}"
        cells.append(
            [line.data, _target(line), str(line.steps), line.method + MARK * line.noted, quality, seeds, size, minutes]
        )
    return [f"| {' | '.join(row)} |" for row in cells]


@dataclass(frozen=True)
class Other:
    """A table of data that settings were not chosen on, or less."""

    data: dict[str, tuple[str, str]]  # by name: what it is; texts for training, held out
    beside: dict[str, tuple[str, str]]  # by heading: target, method


OTHERS = {  # by the page's mark
    "other data": Other(
        {
            "questions": ("questions (TREC), 6 labels", "5,371, 500"),
            "subjectivity": ("subjectivity", "9,004, 996"),
            "customers": ("customers' reviews", "3,021, 744"),
            "opinions": ("opinions in phrases (MPQA)", "7,408, 832"),
            "banking": ("banking (BANKING77), 77 labels, 300 steps", "9,993, 3,079"),
        },
        {
            "dense": ("dense", "dense"),
            "80 % of the weights, `recipe=encoder`": ("80", "alps"),
            "llmcompressor's SparseGPT": ("80", "llmcompressor-sparsegpt"),
            "half of the neurons, `recipe=encoder_narrow`": ("ffn=0.5", "obs"),
        },
    ),
    "other texts": Other(
        {
            "plays": ("Shakespeare's plays", "239, 26"),
            "library": ("source of Python 3.11.7's library", "2,852, 334"),
            "sums": ("chats: sums in words, worked out (GSM8K)", "7,473, 320"),
        },
        {
            "dense": ("dense", "dense"),
            "half of the weights, `recipe=decoder`": ("50", "alps"),
            "llmcompressor's SparseGPT": ("50", "llmcompressor-sparsegpt"),
        },
    ),
}


def on_other_data(table: Sequence[Line], other: Other) -> list[str]:
    """A row for each data set: means, with the number of seeds."""
    measured = {(line.data, line.target, line.method): line for line in table if line.mean is not None}

    def cell(data: str, target: str, method: str) -> str:
        line = measured.get((data, target, method))
        if line is None or line.mean is None:
            return "-"
        figure = f"{100 * line.mean:.1f} %" if line.metric in HIGHER_IS_BETTER else _figure(line.mean, line.metric)
        return f"{figure} ({len(line.values)})"

    head = ["data", "for training, held out", *other.beside]
    rows = [[*words, *(cell(data, *column) for column in other.beside.values())] for data, words in other.data.items()]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def into_page(page: Path, name: str, text: Sequence[str]) -> None:
    """Replace what stands between the page's two marks of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.read_text().split(f"{begin}\n")
    page.write_text("\n".join([f"{before}{begin}", *text, f"{end}{rest.split(end)[1]}"]))


def _target(line: Line) -> str:
    return f"{line.target} %" if line.target.replace(".", "", 1).isdigit() else line.target


def _figure(value: float, metric: str, beside: float | None = None) -> str:
    """With the digits of what it stands beside: of a mean its spread."""
    size = value if beside is None else beside
    digits = 4 if metric in HIGHER_IS_BETTER else 3 if size < 10 else 2 if size < 100 else 0
    return f"{value:.{digits}f}"


def _styles() -> dict[str, dict[str, Any]]:
    """A colour and a marker for each method, always the same."""
    ours = [method for method, known in METHODS.items() if known.peer is None and method != "dense"]
    peers = [method for method, known in METHODS.items() if known.peer is not None]
    found: dict[str, dict[str, Any]] = {"dense": {"color": "black", "linestyle": "--", "marker": "o"}}
    for place, method in enumerate(ours):
        found[method] = {"color": f"C{place % 10}", "linestyle": "-", "marker": MARKERS[place // 10]}
    for place, method in enumerate(peers):
        found[method] = {"color": f"C{(place + 4) % 10}", "linestyle": ":", "marker": PEERS[place % len(PEERS)]}
    return found


def picture(table: Sequence[Line], path: Path) -> None:
    """Quality over training steps, one line a method, a panel for each data set and target; PNG."""
    if not available():
        print("no picture: matplotlib is not here; pip install 'pat-deepspeed[plot]' and give --table")
        return
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    from matplotlib.ticker import LogLocator  # pyright: ignore[reportMissingImports]

    points, style = [line for line in table if line.mean is not None], _styles()
    panels = list(
        dict.fromkeys((line.data, line.target) for line in points if line.data in PICTURED and line.target != "dense")
    )
    if not panels:
        return
    shown = {line.method for line in points} - LEFT_OUT
    methods = [method for method in METHODS if method in shown]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((PANEL[0] * across, PANEL[1] * down), dpi=90, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for (data, target), panel in zip(panels, axes.flat, strict=False):
        for method in methods:
            own = [line for line in points if line.data == data and line.method == method]
            own = sorted((line for line in own if line.target in (target, "dense")), key=lambda line: line.steps)
            if own:
                panel.plot([line.steps for line in own], [line.mean for line in own], label=method, **style[method])
        first = next(line for line in points if line.data == data)
        budgets = sorted({line.steps for line in points if line.data == data and line.target in (target, "dense")})
        panel.set_xscale("symlog", linthresh=10)
        panel.set_xlim(-2 if budgets[0] == 0 else budgets[0] / 1.5, 1.5 * budgets[-1])
        close = [any(steps < other < 1.3 * steps for other in budgets) for steps in budgets]  # no room for two numbers
        panel.set_xticks(budgets, ["" if hidden else str(n) for n, hidden in zip(budgets, close, strict=True)])
        panel.minorticks_off()
        if first.metric not in HIGHER_IS_BETTER:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
            panel.yaxis.set_minor_formatter("{x:g}")
        better = "higher" if first.metric in HIGHER_IS_BETTER else "lower"
        title = f"{data}, {_target(next(line for line in points if line.target == target))} ({better} is better)"
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("training steps", fontsize=8)
        panel.set_ylabel(first.metric, fontsize=8)
        panel.tick_params(labelsize=7, which="both")
        panel.legend(fontsize=7, framealpha=0.5)  # lines are seen behind it
    for panel in list(axes.flat)[len(panels) :]:
        panel.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
