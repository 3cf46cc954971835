"""One model's answers to a recipe's evaluation samples, kept so that metrics can be taken over any subset.

# n samples, c classes or outputs
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pat.data import prepare, sources
from pat.data.prepare import PreparedData
from pat.data.sampler import token_counts
from pat.evaluation import seen
from pat.evaluation.fitting import check_labels, eval_batches
from pat.schema import Config
from pat.statistics.estimates import Places
from pat.tasks import base
from pat.tasks.base import Batch, Task


@dataclass(frozen=True)
class Rows:
    """One model's answers, in the order of the samples' numbers; samples without a supervised token are left out."""

    task: Task
    data: str
    numbers: list[int]  # of the samples
    rows: Tensor  # (n, c) fp32 logits of tasks with a label a sample; else fp64, see `Task.token_sums`
    labels: Tensor | None  # (n,) of the former
    slices: list[tuple[str, ...]]

    def metrics(self, places: Places | None = None) -> dict[str, float]:
        """The task's metrics, over all, or over those at these places, each as often as it is named."""
        chosen = torch.arange(len(self.numbers)) if places is None else torch.from_numpy(places)
        rows = self.rows[chosen]
        if self.labels is None:
            return self.task.metrics(rows.sum(0))
        said = SimpleNamespace(logits=rows)
        batch = {
            "labels": self.labels[chosen],
            "weight": torch.ones(len(chosen)),
            "sample": torch.arange(len(chosen)),
            "num_samples": torch.tensor(len(chosen)),
        }
        return self.task.metrics(self.task.sums(lambda **_: said, batch))

    def values(self) -> tuple[Tensor, Tensor]:
        """((n,), (n,)) fp64: the task's `sample_metric` of each, and the weights by which its mean is the metric."""
        if self.labels is None:
            return self.rows[:, 0] / self.rows[:, 1], self.rows[:, 1]
        return self.task.sample_values(self.rows, {"labels": self.labels})

    def other_means(self) -> dict[str, Tensor]:
        """{metric: (n,) fp64}, see the task's."""
        return {} if self.labels is None else self.task.other_means(self.rows, {"labels": self.labels})

    def confidences(self) -> tuple[Tensor, Tensor] | None:
        """((n,), (n,)) fp64: the probability of the class that was chosen, whether it was right; None: no classes."""
        if self.labels is None or not self.task.distribution:
            return None
        most, chosen = self.rows.double().softmax(-1).max(-1)
        return most, (chosen == self.labels).double()


OF_LABEL = "label="  # how the slices of one class begin


class Parts:
    """Which slices a sample is in: its label, short or long, parted at the median length, and those of the data."""

    def __init__(self, task: Task, prepared: PreparedData) -> None:
        self.lengths = token_counts(prepared.eval)
        self.names, self.labelled = prepared.label_names, task.per_sample and task.distribution
        self.median = float(np.median(self.lengths))
        self.parted = bool(self.lengths.min() < self.median or self.lengths.max() > self.median)
        self.named = prepared.slices

    def of(self, batch: Batch, i: int) -> tuple[str, ...]:
        """DIMENSION=VALUE of each slice that sample i of a batch is in."""
        return self.of_sample(int(batch["sample"][i]), int(batch["labels"][i]) if self.labelled else None)

    def of_sample(self, number: int, label: int | None) -> tuple[str, ...]:
        """The same by its number, and its label where there is one."""
        long = self.lengths[number] > self.median
        return (
            *(() if label is None else (f"{OF_LABEL}{self.name(label)}",)),
            *((f"form={'long' if long else 'short'}",) if self.parted else ()),
            *(() if self.named is None else self.named[number]),
        )

    def name(self, label: int) -> str:
        """The name of a class; its number where classes have no names."""
        return self.names[label] if self.names else str(label)


def check_files(config: Config) -> None:
    """ValueError for a file of these samples that is not there, before a model is loaded to be asked them."""
    sources.check_files(config.data.changed(calibration=None))


def ask(
    config: Config, model: Any, tokenizer: Any, name: str, device: str, said: Mapping[str, Any] | None = None
) -> tuple[Rows, float]:
    """(answers on the evaluation split, tokens per second of the forwards after the first); `said`: the model's
    export.json. ValueError: unfit."""
    task = base.build(config.task)
    prepared = prepare.prepare(config.data.changed(calibration=None), tokenizer, task, config.seed)
    check_labels(prepared, model, name)
    seen.warn(config, prepared, name, said or {})
    parts, clock = Parts(task, prepared), _Clock(device)
    found: dict[int, tuple[Tensor, Tensor | None, tuple[str, ...]]] = {}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in clock.timed(eval_batches(config, prepared, task, tokenizer, [model], device)):
                if task.per_sample:
                    rows, labels = task.outputs(model, batch).logits.float().cpu(), batch["labels"].cpu()
                else:
                    rows, labels = task.token_sums(model, batch).cpu(), None
                for i, number in enumerate(batch["sample"].tolist()):
                    if batch["weight"][i] > 0 and (labels is not None or rows[i, 1] > 0):
                        found[number] = rows[i], None if labels is None else labels[i], parts.of(batch, i)
    finally:
        model.train(training)
    numbers = sorted(found)
    labels = [found[number][1] for number in numbers if found[number][1] is not None]
    return (
        Rows(
            task=task,
            data=said_of(config),
            numbers=numbers,
            rows=torch.stack([found[number][0] for number in numbers]),
            labels=torch.stack(labels) if labels else None,  # pyright: ignore[reportArgumentType]
            slices=[found[number][2] for number in numbers],
        ),
        clock.tokens_per_s(),
    )


def said_of(config: Config) -> str:
    """The name of the data."""
    most = config.data.max_eval_samples
    some = f", at most {most:,} samples (data.max_eval_samples)" if most else ""
    if config.data.source == sources.MIXTURE:
        return f"{sources.MIXTURE}: {', '.join(config.data.sources or ())}{some}"
    return f"{config.data.source}: {config.data.eval or 'held out of ' + str(config.data.train)}{some}"


class _Clock:
    """Times the forwards of an evaluation but for the first, which allocates and compiles; if there is only one, it
    counts."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.laps: list[tuple[float, int]] = []  # seconds, tokens

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time until the next is asked for is that of a forward."""
        for batch in batches:
            counted = batch["weight"] > 0  # (b,); others are repeated
            lengths = batch["attention_mask"].sum(1) if "attention_mask" in batch else batch["input_ids"].shape[1]
            tokens = int((counted * lengths).sum())
            started = self._now()
            yield batch
            self.laps.append((self._now() - started, tokens))

    def tokens_per_s(self) -> float:
        """Tokens over seconds."""
        laps = self.laps[1:] or self.laps
        return sum(tokens for _, tokens in laps) / sum(seconds for seconds, _ in laps)

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()
