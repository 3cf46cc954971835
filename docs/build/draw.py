"""Draws the pictures of the concepts page: python docs/build/draw.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from pat.pruning.schedules.ramps import Cubic, Linear, OneShot

STEPS = 100
FINAL = 0.8
PHASES = (("dense", 0, 10, "#dfe7f3"), ("soft", 10, 70, "#fbe8cf"), ("hard", 70, STEPS, "#dcefe0"))


def main() -> None:
    """Sparsity over the steps for three schedules, with the phases behind them."""
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pat", "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for name, low, high, colour in PHASES:
        axes.axvspan(low, high, color=colour, lw=0)
        axes.text((low + high) / 2, 0.93, name, ha="center", fontsize=11, color="#333333")
    for schedule in (
        Cubic(name="cubic", start=0.1, end=0.6, hard_from=0.7),
        Linear(name="linear", start=0.1, end=0.6, hard_from=0.7),
        OneShot(name="one_shot", start=0.3, end=None, hard_from=0.7),
    ):
        line = schedule.resolve(STEPS)
        axes.step(range(STEPS), [line.target(t, FINAL) for t in range(STEPS)], where="post", label=schedule.name)
    axes.set(xlim=(0, STEPS), ylim=(0, 1), xlabel="per cent of the run", ylabel="sparsity that is due")
    axes.legend(loc="lower right", frameon=False)
    figure.patch.set_facecolor("white")
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "pictures" / "phases.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
