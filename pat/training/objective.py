"""What a step minimises: the task's loss, with a teacher's if there is one, as a mean over the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from pat.common.comm import Comm
from pat.tasks.base import Batch, Task
from pat.training.distill import Distiller
from pat.training.shares import Shares, shares

WHOLE: Shares = (1.0, 1.0)


class Objective:
    """The loss of a micro-batch and what it counts for."""

    def __init__(
        self,
        engine: Any,  # called with a batch's inputs, as the model is
        task: Task,
        world: Comm,
        global_mean: bool,  # train.global_mean
        distiller: Distiller | None = None,
    ) -> None:
        self.engine, self.task, self.world, self.distiller = engine, task, world, distiller
        self.weighs = global_mean and (task.uneven or (distiller is not None and distiller.hidden_weight > 0))

    def shares(self, batches: Sequence[Batch]) -> Sequence[Shares]:
        """The weight of each of a step's losses: its share of the global batch. Collective unless all are equal."""
        if not self.weighs:
            return [WHOLE] * len(batches)
        return [(row[0], row[1]) for row in shares(self.task, batches, self.world)]

    def loss(self, batch: Batch, t: int, shares: Shares = WHOLE) -> torch.Tensor:
        """The loss of a micro-batch of step t. Its average over micro-batches and ranks is that of the global batch."""
        if self.distiller:
            return self.distiller.loss(self.engine, batch, t, shares)
        return self.task.loss(self.engine, batch) * shares[0]

    def chance(self, labels: npt.NDArray[Any]) -> float:
        """The loss of a model that guesses, of the task; with a teacher the most that it can be."""
        chance = self.task.chance_loss(self.engine.module.config, labels)
        return chance * self.distiller.of_guessing if self.distiller else chance

    def logged(self) -> dict[str, float]:
        """Parts of the loss since the last line. Collective."""
        return self.distiller.logged(self.world) if self.distiller else {}
