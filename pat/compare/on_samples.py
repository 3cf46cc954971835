"""Asks both models a recipe's evaluation samples, as `pat evaluate` reads them.

# b samples of a batch, s tokens of its longest, v vocabulary or classes
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pat.compare.divergence import kl
from pat.compare.pairs import Asked, Outcome, Pair, check_finite
from pat.data import prepare
from pat.evaluation import seen
from pat.evaluation.fitting import check_labels, eval_batches
from pat.evaluation.models import Loaded, same_tokens
from pat.evaluation.samples import Parts, said_of
from pat.schema import Config
from pat.tasks import base
from pat.tasks.base import Batch, Task

CONTEXT = 24  # tokens that are shown before the one in which outputs differ


def ask(config: Config, a: Loaded, b: Loaded, device: str) -> Asked:
    """Both models on each batch at once. Slices: the label, and short or long, parted at the median length.

    Raises ValueError where their tokenizers differ, so that they would be asked different things.
    """
    task = base.build(config.task)
    if not same_tokens(a, b):
        raise ValueError(
            f"{a.path} and {b.path} have different tokenizers, so a recipe's samples are not the same for both: give "
            "--mix, whose prompts are texts"
        )
    prepared = prepare.prepare(config.data.changed(calibration=None), a.tokenizer, task, config.seed)
    for one in (a, b):
        check_labels(prepared, one.model, str(one.path))
        seen.warn(config, prepared, one.path, one.said)
    sample = _Samples(task, a.tokenizer, Parts(task, prepared))
    outcome = Outcome(task.sample_metric, task.directions[task.sample_metric])
    pairs: dict[int, Pair] = {}
    with torch.inference_mode():
        for batch in eval_batches(config, prepared, task, a.tokenizer, [a.model, b.model], device):
            logits = [task.outputs(one.model, batch).logits for one in (a, b)]
            (of_a, weights), (of_b, _) = (task.sample_values(each, batch) for each in logits)
            made, harms = sample.pairs(batch, logits, weights), sample.harms(batch, logits)
            for i, number in enumerate(batch["sample"].tolist()):
                if batch["weight"][i] > 0 and weights[i] > 0:
                    for one, value in ((a, of_a[i]), (b, of_b[i])):
                        check_finite(math.isfinite(value), one.path, f"sample {number}")
                    outcome.add(number, float(of_a[i]), float(of_b[i]), float(weights[i]), harms[i])
                    pairs[number] = made[i]
    numbers = sorted(pairs)
    place = {number: i for i, number in enumerate(numbers)}
    outcome.positions[:] = [place[number] for number in outcome.positions]
    notes = []
    if not task.per_sample and any(pair.kl is None for pair in pairs.values()):
        notes.append("the models' embeddings are padded to different sizes, so there is no KL")
    return Asked(said_of(config), [pairs[number] for number in numbers], [outcome], notes, "samples")


class _Samples:
    """What is recorded of a sample besides its outcome."""

    def __init__(self, task: Task, tokenizer: Any, parts: Parts) -> None:
        self.task, self.tokenizer, self.parts = task, tokenizer, parts

    def pairs(self, batch: Batch, logits: list[Tensor], weights: Tensor) -> list[Pair]:
        """One pair for each sample."""
        make = self._of_label if self.task.per_sample else self._of_tokens
        return [make(batch, logits, i, float(weights[i])) for i in range(len(batch["sample"]))]

    def harms(self, batch: Batch, logits: list[Tensor]) -> list[float | None]:
        """Of classes, how much probability the label has lost; else the outcome says it."""
        if not (self.task.per_sample and self.task.distribution):
            return [None] * len(batch["sample"])
        chosen = batch["labels"][:, None]
        a, b = (each.double().softmax(-1).gather(1, chosen)[:, 0] for each in logits)
        return (a - b).tolist()

    def _of_label(self, batch: Batch, logits: list[Tensor], i: int, weight: float) -> Pair:
        a, b = (each[i] for each in logits)
        if not self.task.distribution:
            outputs, kind, apart = [f"{float(each[0]):.6g}" for each in (a, b)], None, None
        else:
            outputs = [self.parts.name(int(each.argmax())) for each in (a, b)]
            kind, apart = float(outputs[0] == outputs[1]), float(kl(a[None], b[None]))
        return Pair(
            id=str(int(batch["sample"][i])),
            prompt=self._text(batch, i),
            a=outputs[0],
            b=outputs[1],
            slices=self.parts.of(batch, i),
            weight=weight,
            agreement=kind,
            kl=apart,
        )

    def _of_tokens(self, batch: Batch, logits: list[Tensor], i: int, weight: float) -> Pair:
        where = torch.nonzero(self.task.supervised(batch)[i])[:, 0]  # (m,)
        a, b = (each[i][where] for each in logits)  # (m, v)
        best = [each.argmax(-1) for each in (a, b)]
        differing = torch.nonzero(best[0] != best[1])[:, 0]
        first = int(differing[0]) if len(differing) else None
        at = int(where[0 if first is None else first])
        ids, said = batch["input_ids"][i], [int(each[first or 0]) for each in best]
        named = self.parts.name if self.task.labelled else lambda answer: self.tokenizer.decode([answer])
        return Pair(
            id=str(int(batch["sample"][i])),
            prompt=self.tokenizer.decode(ids[max(0, at + 1 - CONTEXT) : at + 1].tolist()),
            a=named(said[0]),
            b=named(said[1]),
            slices=self.parts.of(batch, i),
            weight=weight,
            agreement=float((best[0] == best[1]).double().mean()),
            kl=float(kl(a, b).mean()) if a.shape == b.shape else None,
            first_difference=first,
        )

    def _text(self, batch: Batch, i: int) -> str:
        length = int(self.parts.lengths[int(batch["sample"][i])])
        return self.tokenizer.decode(batch["input_ids"][i][:length].tolist(), skip_special_tokens=True)
