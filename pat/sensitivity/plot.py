"""The heat map: layers down, kinds across, a panel for each fraction; the darker, the more the loss rises."""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from pathlib import Path

from pat.common.files import replace_atomic
from pat.pruning.timetable import percent
from pat.sensitivity.report import Rows, few_units, short_layers

DECADES = 3  # of the colour scale below the largest increase
MISSING = "no heat map: matplotlib is not here; pip install 'pat-deepspeed[plot]' and run the same command again"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def heat_map(cells: Rows, path: Path, title: str) -> None:
    """Write it as PNG."""
    import numpy as np
    from matplotlib.colors import LogNorm  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    layers = list(dict.fromkeys(cell["layer"] for cell in cells))
    fractions = sorted({cell["fraction"] for cell in cells})
    kinds = [list(dict.fromkeys(cell["kind"] for cell in cells if cell["fraction"] == f)) for f in fractions]
    most = max([cell["increase"] for cell in cells if math.isfinite(cell["increase"])], default=0.0)
    most = max(most, 1e-6)
    least = most / 10**DECADES
    norm = LogNorm(least, most, clip=True)
    widths = [len(each) for each in kinds]
    figure = Figure((max(6.0, 2.4 + 0.3 * sum(widths)), 2.9 + 0.19 * len(layers)), dpi=90, layout="constrained")
    panels = figure.subplots(1, len(fractions), width_ratios=widths, squeeze=False)[0]
    image = None
    for panel, fraction, names in zip(panels, fractions, kinds, strict=True):
        values = np.full((len(layers), len(names)), np.nan)
        for cell in cells:
            if cell["fraction"] == fraction:
                values[layers.index(cell["layer"]), names.index(cell["kind"])] = cell["increase"]
        values = np.where(np.isinf(values), most, values)  # what is no number stays blank
        image = panel.imshow(np.where(values <= 0, least, values), cmap="YlOrRd", norm=norm, aspect="auto")
        panel.set_title(f"{percent(fraction)} removed", fontsize=9)
        mine = [[cell for cell in cells if cell["fraction"] == fraction and cell["kind"] == name] for name in names]
        labels = [f"{name} {few_units(its)}".rstrip() for name, its in zip(names, mine, strict=True)]
        panel.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
        panel.set_yticks(range(len(layers)), short_layers(layers) if panel is panels[0] else [], fontsize=7)
        panel.tick_params(length=0)
    panels[0].set_ylabel("layer", fontsize=8)
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), pad=0.01)
    bar.set_label("loss added", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9)
    replace_atomic(path, partial(figure.savefig, format="png"))
