"""Pictures as SVG: the same bytes for the same numbers, in colours that the page decides (light, dark, print).

matplotlib draws in stand-in colours; afterwards each becomes a CSS variable of the page.
"""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pat.common.text import plain
from pat.report.curves import Chart, Phase
from pat.report.kept import Count, layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "The pictures need matplotlib: pip install 'pat-deepspeed[plot]', then the same command."
INK, MUTED, LINE, GROUND = "#010101", "#020202", "#030303", "#040404"
ONE, TWO, GOOD, BAD = "#0a0101", "#0a0202", "#0a0303", "#0a0404"
_VARIABLES = {
    INK: "ink", MUTED: "muted", LINE: "line", GROUND: "surface", ONE: "one", TWO: "two", GOOD: "good", BAD: "bad",
}  # fmt: skip
WIDTH, HEIGHT = 4.0, 2.4  # inches; a unit of the SVG is 1/72 inch
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,  # names are not parsed as mathematics
}
SHADES = {"soft": 0.08, "hard": 0.18}  # opacity of a phase; dense has none
DEEPEST = 0.5  # opacity of a cell at 100 %: text on it stays readable
NAME = 24  # characters of a label
ROWS = 30  # of a picture with a line for each name


def available() -> bool:
    """Whether matplotlib is installed; it is an extra."""
    return importlib.util.find_spec("matplotlib") is not None


def curves(chart: Chart, phases: Sequence[Phase], over: str = "step") -> str | None:
    """A line for each series over the steps or another count; phases are shaded and named."""

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        for one, colour in zip(chart.series, (ONE, TWO, GOOD), strict=False):
            x, y = zip(*one.points, strict=True)
            scaled = [value * 100 for value in y] if chart.share else y
            marker = "o" if one.dots or len(one.points) == 1 else ""
            style = "--" if one.dashed else "-"
            axes.plot(x, scaled, style, color=colour, linewidth=1.8, marker=marker, markersize=4.5, label=one.name)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.12 * (high - low))  # room for the phases' names
        _shade(axes, phases)
        axes.set_xlabel(over)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.ticklabel_format(useOffset=False)
        axes.grid(axis="y")
        if chart.share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        if len(chart.series) > 1:
            _legend(figure)

    return _svg(f"curves-{chart.name}", draw, HEIGHT)


def heat_map(found: Sequence[Count], name: str) -> str | None:
    """Layers down, kinds across: the deeper, the more is removed."""
    rows = layers(found)
    kinds = list(dict.fromkeys(count.kind for count in found))
    by_place = {(count.layer, count.kind): count.sparsity for count in found}
    shown = shortest(kinds)

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for i, layer in enumerate(rows):
            for j, kind in enumerate(kinds):
                value = by_place.get((layer, kind))
                if value is not None:
                    opacity = max(DEEPEST * value, 0.02)
                    axes.add_patch(Rectangle((j, i), 0.96, 0.92, linewidth=0, facecolor=ONE, alpha=opacity))
                    axes.text(j + 0.48, i + 0.46, f"{100 * value:.0f}", ha="center", va="center", fontsize=8.5)
        axes.set(xlim=(0, len(kinds)), ylim=(len(rows), 0), ylabel="layer")
        axes.set_xticks([j + 0.48 for j in range(len(kinds))], shown)
        axes.set_yticks([i + 0.46 for i in range(len(rows))], rows)
        if len(kinds) > 4:
            axes.tick_params(axis="x", rotation=90)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)

    longest = max(map(len, shown), default=0)
    return _svg(f"kept-{name}", draw, 0.7 + 0.24 * len(rows) + (0.08 * longest if len(kinds) > 4 else 0.0))


def intervals(rows: Sequence[tuple[str, float, float, float, str]], unit: str, name: str) -> str | None:
    """Differences with their intervals, a line for each slice: (name, low, difference, high, verdict)."""
    rows = rows[:ROWS]
    colours = {"worse": BAD, "better": GOOD}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (_, low, middle, high, verdict) in enumerate(rows):
            colour = colours.get(verdict, MUTED)
            axes.plot((low, high), (i, i), color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([middle], [i], marker="D" if verdict else "o", color=colour, markersize=5.5)
        axes.axvline(0.0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(rows)), [_cut(row[0]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(unit)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=5)

    return _svg(f"intervals-{name}", draw, 0.85 + 0.24 * len(rows))


def front(points: Sequence[tuple[float, float, bool]], x: str, y: str, name: str) -> str | None:
    """Quality over size: points, and a line through the best; (x, y, on the front)."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        best = sorted((a, b) for a, b, is_best in points if is_best)
        if best:
            axes.plot(
                *zip(*best, strict=True), color=ONE, linewidth=1.4, marker="o", markersize=6, label="on the front"
            )
        rest = [(a, b) for a, b, is_best in points if not is_best]
        if rest:
            axes.plot(
                *zip(*rest, strict=True), "o", color=MUTED, markersize=4.5, label="another is as good or better in both"
            )
        axes.set(xlabel=x, ylabel=y)
        axes.margins(0.1)
        axes.grid()
        axes.ticklabel_format(useOffset=False)
        _legend(figure)

    return _svg(f"front-{name}", draw, HEIGHT)


def _shade(axes: Axes, phases: Sequence[Phase]) -> None:
    from matplotlib.transforms import blended_transform_factory

    if len(phases) < 2 and not any(phase.name in SHADES for phase in phases):
        return
    at = blended_transform_factory(axes.transData, axes.transAxes)
    whole = max((phase.end for phase in phases), default=0.0) - min((phase.start for phase in phases), default=0.0)
    for phase in phases:
        if phase.name in SHADES:
            axes.axvspan(phase.start, phase.end, color=ONE, alpha=SHADES[phase.name], linewidth=0)
        if phase.end - phase.start >= 0.08 * whole:
            axes.text(
                (phase.start + phase.end) / 2, 0.97, phase.name, transform=at, ha="center", va="top", fontsize=8.5,
                color=MUTED,
            )  # fmt: skip


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=3, borderpad=0.0, handlelength=1.6, columnspacing=1.4)


def _svg(name: str, draw: Any, height: float) -> str | None:
    """The figure that `draw` fills, as SVG for a page; None without matplotlib."""
    if not available():
        return None
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that is not in matplotlib's own font: the browser has others
        figure = Figure((WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0.0)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return themed(plain(file.getvalue()), name)


def themed(svg: str, name: str) -> str:
    """Without head and metadata, ids of its own, the stand-in colours as variables, hidden from screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)  # it would apply to the whole page
    opening = svg[: svg.index(">")]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box
    return f'<svg {box[0]} aria-hidden="true" focusable="false" stroke-linejoin="round"{svg[len(opening) :]}'


def shortest(kinds: Sequence[str]) -> list[str]:
    """The ends of dotted names that tell them apart: `q_proj` of `self_attn.q_proj`."""

    def end(kind: str, parts: int) -> str:
        return ".".join(kind.split(".")[-parts:])

    def unique(kind: str) -> str:
        ends = ((end(kind, n), [end(other, n) for other in kinds]) for n in range(1, kind.count(".") + 1))
        return next((own for own, others in ends if others.count(own) == 1), kind)

    return [_cut(unique(kind)) for kind in kinds]


def _cut(label: str) -> str:
    """A label shortened to leave room for the picture, without control characters."""
    return label if len(label) <= NAME else f"{label[: NAME - 1]}\u2026"
