"""The figure of every slice of the evaluation samples, while a model trains.

# n evaluation samples; the figure of a slice is the task's `sample_metric` over its samples, as in `pat evaluate`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.common.slices import places
from pat.data.checks import labels_of
from pat.data.prepare import PreparedData
from pat.envelope.spec import SLICES, Limit, Slices
from pat.evaluation.samples import Parts
from pat.schema import Config
from pat.tasks.base import Batch, Task

Figures = dict[str, dict[str, float]]  # "FIGURE[DIMENSION=VALUE]" -> value, n


class Sliced:
    """Which samples are in which slice."""

    def __init__(self, task: Task, prepared: PreparedData) -> None:
        parts = Parts(task, prepared)
        labels = labels_of(prepared.eval) if parts.labelled and "label" in prepared.eval.column_names else None
        self.task, self.n = task, len(prepared.eval)
        named = ((i, parts.of_sample(i, None if labels is None else int(labels[i]))) for i in range(self.n))
        self.places = {name: torch.tensor(numbers) for name, numbers in places(named).items()}

    def evaluate(
        self, model: Any, batches: Iterable[Batch], device: torch.device | str, world: Comm
    ) -> tuple[Tensor, Figures]:
        """(the task's sums, the figure of each slice), over all ranks: one forward gives both. Collective."""
        table = torch.zeros(2, self.n, dtype=torch.float64, device=device)  # value x weight, weight

        def sums(model: Any, batch: Batch) -> Tensor:
            found, values, weights = self._seen(model, batch)
            weights = weights * batch["weight"].double()
            table.index_add_(1, batch["sample"], torch.stack([values * weights, weights]))
            return found

        total = world.sum(self.task.evaluate(model, batches, device, sums))
        return total, self._figures(world.sum(table).cpu())

    def _seen(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(sums of the batch, the metric of each sample, its weight)."""
        task = self.task
        if task.per_sample:
            said = SimpleNamespace(logits=task.outputs(model, batch).logits)
            return task.sums(lambda **_: said, batch), *task.sample_values(said.logits.float(), batch)
        rows = task.token_sums(model, batch)
        total = (rows * batch["weight"].double()[:, None]).sum(0)
        return total, rows[:, 0] / rows[:, 1].clamp(min=1.0), rows[:, 1]

    def _figures(self, table: Tensor) -> Figures:
        found: Figures = {}
        for name, numbers in self.places.items():
            values, weights = table[:, numbers]
            n = int((weights > 0).sum())
            if n:
                found[f"{self.task.sample_metric}[{name}]"] = {"value": float(values.sum() / weights.sum()), "n": n}
        return found


def of(config: Config, task: Task, prepared: PreparedData) -> Sliced | None:
    """None where neither the data names slices nor the envelope limits them. ValueError where no slice is large
    enough."""
    limit = config.envelope.get(SLICES)
    if prepared.slices is None and limit is None:
        return None
    made = Sliced(task, prepared)
    if limit is None:
        return made
    slices = _slices(limit)
    slices.check(made.places)
    largest = max((len(numbers) for name, numbers in made.places.items() if slices.judges(name)), default=0)
    if largest < slices.least:
        raise ValueError(
            f"envelope.slices.least is {slices.least}, but the largest slice of the evaluation data has {largest} "
            "samples: give less, more data, or a data.slice_column"
        )
    return made


def limits(
    envelope: Mapping[str, Limit],
    dense: Figures,  # of the dense model
    higher_is_better: bool,
) -> dict[str, Limit]:
    """That of each slice with enough samples, by the name of its figure."""
    given = envelope.get(SLICES)
    if given is None:
        return {}
    slices = _slices(given)
    limit = slices.of(higher_is_better)
    assert limit is not None, "pat.config.validate sees to it"
    enough = {name: name.partition("[")[2] for name, one in dense.items() if one["n"] >= slices.least}
    return {name: limit for name, slice_ in enough.items() if slices.judges(slice_)}


def _slices(limit: Limit) -> Slices:
    return Slices(**limit.model_dump(exclude_none=True))
