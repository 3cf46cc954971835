"""Draws the pictures of the concepts page: python docs/build/draw.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from pat.common.comm import LOCAL
from pat.pruning.criteria.magnitude import Magnitude
from pat.pruning.granularity.block import Block
from pat.pruning.granularity.n_of_m import NOfM
from pat.pruning.granularity.weight import Weight
from pat.pruning.schedules.ramps import Cubic, Linear, OneShot
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.types import ScoredSegment

ROOT = Path(__file__).parents[2]
STEPS = 100
FINAL = 0.8
PHASES = (("dense", 0, 10, "#dfe7f3"), ("soft", 10, 70, "#fbe8cf"), ("hard", 70, STEPS, "#dcefe0"))

BUDGETS = (  # a budget, and the row of results/frontier.json that shows it
    ("dense", "addresses-80-dense-dense-0"),
    ("sparsity: 0.5", "addresses-0-50-alps-0"),
    ("keep: {ffn: 0.5}", "addresses-80-ffn=0.5-obs-0"),
    ("keep: {layers: 20}", "addresses-80-layers=20-pair-similarity-0"),
)
WEIGHTS = 400  # in the picture of criteria
SIDE = 16  # of the matrix in the picture of masks
STAYS, GONE = "#3f66a5", "#eef1f6"
GATES = (1.0, 1.0, 0.0, 1.0, 0.4, 1.0, 0.0, 1.0)  # of the neurons in the picture of gates; one is on its way down


def main() -> None:
    """All pictures."""
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pat", "font.family": "sans-serif"}
    phases()
    masks()
    criteria()
    gates()
    budgets()


def phases() -> None:
    """Sparsity over the steps for three schedules, with the phases behind them."""
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
    _save(figure, "phases")


def masks() -> None:
    """Half of one random matrix, by magnitude, in each granularity: what stays is dark."""
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    kinds = {"weight": Weight(name="weight"), "block, 4 x 4": Block(rows=4, cols=4), "n_of_m, 2:4": NOfM(n=2, m=4)}
    figure, places = plt.subplots(1, len(kinds), figsize=(8, 2.9))
    for axes, (name, granularity) in zip(places, kinds.items(), strict=True):
        _matrix(axes, _kept(weight, granularity), name)
    places[0].set_ylabel("outputs")
    places[0].set_xlabel("inputs")
    _save(figure, "masks")


def _kept(weight: Tensor, granularity: Weight | Block | NOfM) -> Tensor:
    scores, keep = (
        Magnitude(name="magnitude").rank(None, weight.flatten()),
        torch.ones(weight.numel(), dtype=torch.uint8),
    )
    segment = ScoredSegment("weight", tuple(weight.shape), 0, scores, keep)
    granularity.select([segment], 0.5, Global(), LOCAL)
    return keep.view(weight.shape)


def criteria() -> None:
    """The same weights by three criteria: what stays is dark, and half goes each time."""
    random = torch.Generator().manual_seed(0)
    weight, gradient, norm = (torch.randn(WEIGHTS, generator=random) for _ in range(3))
    norm = 1 + norm.abs()
    change = -gradient * 0.4  # what training does to the weight; movement adds up -W dL/dW
    figure, places = plt.subplots(1, 3, figsize=(8, 3.1))
    for axes, name, score, height, label in (
        (places[0], "magnitude: |W|", weight.abs(), change, "change in training"),
        (places[1], "movement: W x change", weight * change, change, "change in training"),
        (places[2], "wanda: |W| x norm", weight.abs() * norm, norm, "norm of the input channel"),
    ):
        stays = score >= score.median()
        for chosen, colour in ((~stays, "#c3cad6"), (stays, STAYS)):
            axes.scatter(weight[chosen], height[chosen], s=9, color=colour, lw=0)
        axes.axvline(0, color="#999999", lw=0.6)
        axes.set_title(name, fontsize=11)
        axes.set(xlabel="weight", ylabel=label, xticks=[0], yticks=[])
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, "criteria")


def budgets() -> None:
    """What "half", or a third, leaves of one Llama: parameters in the export, and those that are not zero."""
    rows = json.loads((ROOT / "results" / "frontier.json").read_text())["rows"]
    left = [(label, rows[key]["parameters"] / 1e6, rows[key]["nonzero_parameters"] / 1e6) for label, key in BUDGETS]
    figure, axes = plt.subplots(figsize=(8, 2.7))
    labels, parameters, nonzero = zip(*reversed(left), strict=True)
    axes.barh(labels, parameters, color="#c3cad6", label="parameters in the exported files")
    axes.barh(labels, nonzero, color=STAYS, label="of them not zero")
    for place, (whole, part) in enumerate(zip(parameters, nonzero, strict=True)):
        text = f"{whole:.0f}" if whole - part < 1 else f"{whole:.0f}, of them {part:.0f}"
        axes.text(whole + 1, place, text, va="center", fontsize=9, color="#333333")
    axes.set(xlim=(0, 160), xlabel="millions")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.22), ncols=2, frameon=False)
    _save(figure, "budgets")


def gates() -> None:
    """A feed-forward block under gates: a neuron is a row of one matrix and a column of the other."""
    gate = torch.tensor(GATES)
    hidden, neurons = 6, len(GATES)
    figure, (up, middle, down) = plt.subplots(1, 3, figsize=(8, 2.9), width_ratios=(hidden, 2, neurons))
    _matrix(up, (gate > 0)[:, None].expand(neurons, hidden), "up_proj: one row per neuron")
    _matrix(middle, gate[:, None], "gates")
    for neuron, value in enumerate(GATES):
        middle.text(0, neuron, f"{value:g}", ha="center", va="center", color="white" if value > 0.5 else "#333333")
    _matrix(down, gate[None, :].expand(hidden, neurons), "down_proj: one column per neuron")
    _save(figure, "gates")


def _matrix(axes: Any, values: Tensor, title: str) -> None:
    axes.imshow(values.float(), cmap=LinearSegmentedColormap.from_list("kept", (GONE, STAYS)), vmin=0, vmax=1)
    axes.set_title(title, fontsize=11)
    axes.set_xticks(torch.arange(values.shape[1]) - 0.5, labels=[])
    axes.set_yticks(torch.arange(values.shape[0]) - 0.5, labels=[])
    axes.grid(color="white", linewidth=1.2)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _save(figure: Any, name: str) -> None:
    figure.patch.set_facecolor("white")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "pictures" / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
