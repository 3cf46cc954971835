"""The picture of a sweep: quality against sparsity, size or latency, with the Pareto front."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pat.common.files import replace_atomic
from pat.sweeps.results import Axis, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOW_TO_GET = "pip install 'pat-deepspeed[plot]' (matplotlib), then run the same command with --continue"
PALE = 0.3  # opacity of points that another one beats
LOG_FROM = 20.0  # highest / lowest value from which on an axis is logarithmic
_MARKERS = "osD^vP*X<>"


def available() -> bool:
    """Whether matplotlib is installed; it is an extra."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(points: Sequence[Point], x: Axis, y: Axis, title: str, path: Path) -> None:
    """Write `figure_of` the points to `path` as PNG; matplotlib must be installed (`available`)."""
    replace_atomic(path, partial(figure_of(points, x, y, title).savefig, format="png"))


def figure_of(points: Sequence[Point], x: Axis, y: Axis, title: str) -> Figure:
    """A colour and marker for each method, bars from the worst to the best seed, the front as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    series = list(dict.fromkeys(series_of(point.varied, points) for point in points))
    front = sorted((p.x * x.scale, p.y * y.scale) for p in points if p.best)
    middle = (min(p.x for p in points) + max(p.x for p in points)) / 2 * x.scale
    axes.plot(*zip(*front, strict=True), color="0.35", linewidth=1.2, zorder=1, label="Pareto front")
    for number, name in enumerate(series):
        colour, marker = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
        axes.plot([], [], marker, color=colour, label=name or "runs")
        for point in points:
            if series_of(point.varied, points) != name:
                continue
            opacity = 1.0 if point.best else PALE
            at = (point.x * x.scale, point.y * y.scale)
            below, above = (abs(end - point.y) * y.scale for end in (point.y_low, point.y_high))
            bar = [[below], [above]] if below or above else None
            axes.errorbar(
                *at, yerr=bar, fmt=marker, color=colour, alpha=opacity, markersize=7, capsize=3,
                markeredgecolor="white", markeredgewidth=0.6, zorder=3 if point.best else 2,
            )  # fmt: skip
            text = level_of(point.varied, x, points)
            if text and point.best:
                left = at[0] < middle
                axes.annotate(
                    text, at, xytext=(7 if left else -7, 7), textcoords="offset points", fontsize=8, color="0.25",
                    ha="left" if left else "right",
                )  # fmt: skip
    for values, set_scale in (([p.x for p in points], axes.set_xscale), ([p.y for p in points], axes.set_yscale)):
        if min(values) > 0 and max(values) / min(values) >= LOG_FROM:
            set_scale("log")
    seeds = max(point.members for point in points)
    note = f"\neach point is the mean of up to {seeds} seeds, the bar from the worst to the best" if seeds > 1 else ""
    axes.set(xlabel=x.label, ylabel=y.label)
    if axes.get_yscale() == "linear":
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title(f"{title}{note}", fontsize=10, loc="left")
    axes.margins(0.08)
    axes.grid(alpha=0.25)
    if len(series) > 1 or series[0]:
        axes.legend(fontsize=8, frameon=False)
    return figure


def series_of(varied: Mapping[str, str], points: Sequence[Point]) -> str:
    """The words among the varied values (the method), which get a colour; numbers are places along it."""
    return ", ".join(value for key, value in varied.items() if not _numeric(key, points))


def level_of(varied: Mapping[str, str], x: Axis, points: Sequence[Point]) -> str:
    """The numbers that differ between points, but for the sparsity where the axis shows it."""
    differ = {key for key in varied if len({point.varied[key] for point in points}) > 1}
    levels = {key: value for key, value in varied.items() if key in differ and _numeric(key, points)}
    return ", ".join(
        f"{key.rpartition('.')[2]} {value}"
        for key, value in levels.items()
        if not (x.name == "sparsity" and key.endswith("sparsity"))
    )


def _numeric(key: str, points: Sequence[Point]) -> bool:
    try:
        for point in points:
            float(point.varied[key])
    except ValueError:
        return False
    return True
