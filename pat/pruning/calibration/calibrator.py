"""What calibrated pruners are bound to: walks over the layers of the model that trains, on samples of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from pat.common.comm import Comm
from pat.pruning.calibration.back import Loss, check_labels, own_labels, own_loss
from pat.pruning.calibration.fitted import FittedWeights
from pat.pruning.calibration.journal import Journal, Journals
from pat.pruning.calibration.needs import Needs
from pat.pruning.calibration.skeleton import stack_of
from pat.pruning.calibration.statistics import SquaredNorm
from pat.pruning.calibration.walk import Walk


def _no_samples(number: int) -> list[Any]:
    raise ValueError(
        "A method that looks at the inputs of matrices needs calibration samples, and nothing gave the pruner any: see "
        "`samples` of attach and PruningCallback"
    )


@dataclass(frozen=True)
class Surroundings:
    """What a run gives its cuts, and whom they tell."""

    samples: Callable[[int], list[Any]] = _no_samples  # how many -> this rank's batches to calibrate on
    loss: Loss = own_loss  # of a model for a batch, summed over what it counts,
    labels: Callable[[Any], int] = own_labels  # which is so much
    on_layer: Callable[[int, int], None] = lambda index, number: None  # at each layer of a walk, and at its end
    on_gradients: Callable[[int, int], None] = lambda index, number: None  # the same of the pass that takes them
    warn: Callable[[str, str], None] = lambda title, text: None  # (title, text) of what the user should know
    journals: Journals = field(default_factory=Journals)  # results of cuts that are not in a checkpoint yet


@dataclass
class Calibrator:
    """Walks over the layers of one model."""

    module: nn.Module  # the engine's
    stock: nn.Module  # the same without adapters
    weights: FittedWeights
    dtype: torch.dtype
    comm: Comm
    gates: Sequence[Callable[[Walk], None]]  # each lets a walk compute with gates that are in no weight
    surroundings: Surroundings = field(default_factory=Surroundings)

    def walk(self, needs: Needs, follow: bool = False) -> Walk:
        """Over the layers with a pruner's matrices, on this rank's samples; `follow`: see Walk. Collective."""
        given = self.surroundings
        walk = self._walk(needs, given.samples(needs.num_samples), follow, given.on_layer)
        for gate in self.gates:
            gate(walk)
        if said := needs.too_few(walk.tokens):
            given.warn("few calibration tokens", said)
        return walk

    def back(self, needs: Needs) -> tuple[Walk, list[Any], Loss]:
        """The layers and samples through which the loss's gradients go back. Collective."""
        given = self.surroundings
        batches = given.samples(needs.num_samples if needs.labels else needs.back)
        rows = max((len(batch["input_ids"]) for batch in batches), default=1)
        together = int(self.comm.sum(torch.tensor(rows)))
        labels = self.comm.sum(torch.tensor([given.labels(batch) for batch in batches])).cumsum(0)
        enough = max(math.ceil(needs.back / together), 1 + int((labels < needs.labels).sum()))
        batches = batches[:enough]  # of those of whole steps
        return self._walk(needs, batches, on_layer=given.on_gradients), batches, given.loss

    def journal(self, name: str, t: int, settings: object, what: str = "layer") -> Journal:
        """Of the cut of a pruner at step t; see Journals."""
        return self.surroundings.journals.open(name, t, settings, what)

    @torch.no_grad()
    def check(self, needs: Needs) -> None:
        """Raise NotCalibrated for a model whose layers no cut could be calibrated on: a micro-batch goes through them
        up to the first with a matrix. ValueError for samples without the labels that it will need. Collective."""
        given = self.surroundings
        batches = given.samples(1)[:1]
        if needs.back and given.loss is own_loss:
            check_labels(batches)
        for layer in self._walk(needs, batches):
            if own := [name for name in needs.shapes if name.startswith(f"{layer.name}.")]:
                layer.collect(dict.fromkeys(own, (SquaredNorm,)))
                break

    def _walk(
        self,
        needs: Needs,
        batches: Sequence[Any],
        follow: bool = False,
        on_layer: Callable[[int, int], None] = lambda index, number: None,
    ) -> Walk:
        return Walk(
            self.module,
            self.weights.whole,
            stack_of(self.stock, list(needs.shapes)),
            batches,
            self.dtype,
            self.comm,
            on_layer=on_layer,
            follow=follow,
            warn=self.surroundings.warn,
            in_dtype=partial(self.weights.narrow, dtype=self.dtype),
        )
