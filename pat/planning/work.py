"""Floating-point operations of a training step and of a calibrated cut, on the rank for which the others wait.

    step       A (loss and backward, and with activation checkpointing the layers' forward once more)
    forwards   of a cut: r L (2 + follows + 3 passes), and before it, for the loss's gradients, b (3 L + 3 O)
    matrices   of a cut: Gram matrices of t tokens, what is missing behind a structure, and the cuts themselves

A micro-batches; r and b of the rank's samples, t their tokens, L the operations of all layers' forward for a sample, O
those outside of them. Weights of a layer are cut by several ranks at once, its structures by one.

By arithmetic: samples are as long as `data.max_length`, every iteration is taken, and matrices of one module that have
as many inputs count as having the same ones. What is no product of matrices, such as the selection of the highest
scores, and waiting for memory or for other ranks are not counted, nor is the walk before a cut that lets layers compete
(`budget.per_layer`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pat.models.experts import expert_of
from pat.planning.activations import Activations
from pat.planning.calibration import gradient_samples, layer_of
from pat.pruning.calibration.needs import Needs
from pat.schema import Config


@dataclass(frozen=True)
class Pace:
    """Operations a second that a card reaches."""

    dtype: float  # in engine.dtype
    fp32: float
    fp64: float


@dataclass(frozen=True)
class Cut:
    """Floating-point operations of a calibrated cut on a rank."""

    forwards: float  # in engine.dtype
    fp32: float  # of the matrices
    fp64: float

    @property
    def all(self) -> float:
        """In any precision."""
        return self.forwards + self.fp32 + self.fp64

    def seconds(self, pace: Pace) -> float:
        """At this pace."""
        return self.forwards / pace.dtype + self.fp32 / pace.fp32 + self.fp64 / pace.fp64


def step(config: Config, accumulation: int, measured: Activations) -> float:
    """Of a training step on a rank."""
    again = measured.layers if config.engine.activation_checkpointing else 0
    return float(accumulation * (measured.training + again))


def cut(config: Config, needs: Sequence[Needs], ranks: int, micro: int, measured: Activations) -> Cut | None:
    """Of the cut that takes most, at `micro` sequences a forward; None where nothing is calibrated."""
    cuts = [_cut(config, each, ranks, micro, measured) for each in needs]
    return max(cuts, key=lambda each: each.all, default=None)


def _cut(config: Config, needs: Needs, ranks: int, micro: int, measured: Activations) -> Cut:
    numbers = needs.num_samples, gradient_samples(config, needs)
    batches, back = (math.ceil(number / (micro * ranks)) for number in numbers)
    tokens = batches * micro * config.data.max_length
    forwards = batches * measured.layers * (2 + needs.follows + 3 * needs.passes)
    forwards += back * 3 * (measured.layers + measured.outside)
    measuring = cutting = 0.0
    for groups in _by_inputs(needs).values():
        measuring += sum(kind.flops(int(seen * tokens), i) for seen, i, _ in groups for kind in needs.statistics)
        work = [sum(needs.cut_flops(o, inputs) for o in outputs) for _, inputs, outputs in groups]
        at_once = 1 if needs.layers else ranks
        cutting += sum(max(work[first : first + at_once]) for first in range(0, len(work), at_once))
    if not needs.layers:
        return Cut(forwards, measuring + cutting, 0.0)
    missing = needs.follows * sum(2.0 * tokens * outputs * inputs for outputs, inputs in needs.shapes.values())
    return Cut(forwards, measuring + missing, cutting)


def _by_inputs(needs: Needs) -> dict[str, list[tuple[float, int, list[int]]]]:
    """By layer: of each input that its matrices read the share of the tokens, the width, and the outputs of those that
    read it."""
    found: dict[str, dict[tuple[str, float, int], list[int]]] = {}
    for name, (outputs, inputs) in needs.shapes.items():
        reader = name.rsplit(".", 2)[0] if expert_of(name) is None else name  # the module of which the matrix's is part
        groups = found.setdefault(layer_of(name), {})
        groups.setdefault((reader, needs.seen_by(name), inputs), []).append(outputs)
    return {layer: [(seen, i, made) for (_, seen, i), made in groups.items()] for layer, groups in found.items()}
