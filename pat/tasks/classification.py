"""Sequence classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pat.tasks import confusion, sight
from pat.tasks.base import Batch, Encoder, Task
from pat.tasks.labels import classes_in, in_words, number, set_classes
from pat.tasks.texts import KEYS, TextRows, collated, text_columns

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.schema import DataConfig


BALANCED = "balanced"

# b samples of a batch, s tokens of its longest sample, c classes


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy over the classes, mean per sample."""

    name: str = "classification"
    num_labels: int | None = None  # null: as many as the training data has
    class_weights: Any = field(
        default=None, repr=False
    )  # one a class, "balanced" until `fitted`; not in the cache's key

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    keys: ClassVar[tuple[str, ...]] = KEYS
    labelled: ClassVar[bool] = True
    per_sample: ClassVar[bool] = True
    directions: ClassVar[Mapping[str, bool]] = {"accuracy": True, "macro_f1": True, "loss": False}
    best_metric: ClassVar[str] = "accuracy"
    headline: ClassVar[str] = "accuracy"
    sample_metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        weights = self.class_weights
        numbers = isinstance(weights, list | tuple) and all(isinstance(w, int | float) for w in weights)
        if weights not in (None, BALANCED) and not (numbers and weights and all(0 <= w < math.inf for w in weights)):
            raise ValueError(
                f"task.class_weights={weights}: allowed are null, {BALANCED}, or a list of numbers, 0 or more, "
                "one a class."
            )

    def fitted(self, shares: Sequence[float]) -> Classification:
        """The task with a weight for each class: as listed, or balanced, n / (k n_c), n_c of n samples, k classes.

        `shares`: how often each class is seen in training. Source of `balanced`: King & Zeng 2001, as in scikit-learn.
        """
        weights = self.class_weights
        if weights is None:
            return self
        if weights == BALANCED:
            seen = sum(share > 0 for share in shares)
            weights = [sum(shares) / (seen * share) if share else 0.0 for share in shares]
        if len(weights) != len(shares):
            raise ValueError(
                f"task.class_weights has {len(weights)} numbers, but the training data has {len(shares)} labels: give "
                "one for each, in their order."
            )
        return replace(self, class_weights=tuple(float(weight) for weight in weights))

    def columns(self, cfg: DataConfig) -> dict[str, str]:
        """The text, perhaps its second part, and the label."""
        return text_columns(cfg)

    def with_words(self, rows: dict[str, Dataset]) -> dict[str, Dataset]:
        """Labels are words in every split where the classes of training are."""
        return in_words(rows, self.num_labels)

    def label_names(self, train: Dataset) -> list[str]:
        """The classes, as many as `num_labels`, or as the training data has."""
        return classes_in(train, self.num_labels)

    def set_head(self, config: PretrainedConfig, names: Sequence[str]) -> bool:
        """One output a class."""
        if names:
            config.problem_type = "single_label_classification"  # the base may have been trained for several at once
        return set_classes(config, names)

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str] | None
    ) -> Encoder:
        """One sample a row, cut to `max_length` tokens."""
        assert label_names is not None
        return TextRows(
            tokenizer, max_length, partial(number, {name: i for i, name in enumerate(label_names)}), "int64"
        )

    def check_model(self, config: PretrainedConfig) -> None:
        """A model that reads what padding fills is refused. Raises ValueError."""
        sight.check_summary(config)

    def chance_loss(self, config: PretrainedConfig, labels: npt.NDArray[Any]) -> float:
        """ln(classes), times the mean weight of the labels."""
        weights = np.asarray(self.class_weights) if isinstance(self.class_weights, tuple) else None
        classes: Any = config.num_labels
        return math.log(classes) * (1.0 if weights is None else float(weights[labels].mean()))

    def collate(self, samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """input_ids, attention_mask, ... (b, s) and labels (b,), s the longest rounded up to a multiple of 8."""
        return collated(samples, tokenizer, torch.int64)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """-w[label] log softmax(logits)[label], mean over the samples, fp32. logits (b, c), w the class weights or 1.

        The mean is not divided by the weights of the batch, so micro-batches and ranks add up.
        """
        if not isinstance(self.class_weights, tuple):
            return F.cross_entropy(logits.float(), batch["labels"])
        losses = F.cross_entropy(logits.float(), batch["labels"], reduction="none")
        return (losses * _on(self.class_weights, logits.device)[batch["labels"]]).mean()

    def supervised(self, batch: Batch) -> Tensor:
        """(b,): every sample."""
        return torch.ones_like(batch["labels"], dtype=torch.float32)

    def sums(self, model: Any, batch: Batch) -> Tensor:
        """(1 + k, c) fp64: loss and samples (then zeros), and k rows of `confusion.counted`."""
        logits = self.outputs(model, batch).logits.float()  # (b, c)
        weight, labels = batch["weight"].double(), batch["labels"]  # (b,)
        losses = F.cross_entropy(logits, labels, reduction="none").double()
        first = torch.zeros(1, logits.shape[1], dtype=torch.float64, device=logits.device)
        first[0, 0], first[0, 1] = (losses * weight).sum(), weight.sum()
        return torch.cat([first, confusion.counted(labels, logits.argmax(-1), weight, logits.shape[1])])

    def sample_values(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Whether each sample's label has the highest logit, NaN where one is not finite; all count alike."""
        right = (logits.argmax(-1) == batch["labels"]).double()
        right = right.masked_fill(~logits.isfinite().all(-1), math.nan)
        return right, torch.ones_like(right)

    def other_means(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss of each sample, without class weights."""
        return {"loss": F.cross_entropy(logits.float(), batch["labels"], reduction="none").double()}

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Accuracy in [0, 1], mean F1 of the classes, and mean loss without class weights. All are NaN where a logit is
        not finite: the first class would have the highest one, by chance."""
        loss, samples = sums[0, :2].tolist()
        if not math.isfinite(loss):
            return dict.fromkeys(("accuracy", "macro_f1", "loss"), math.nan)
        right = float(confusion.by_class(sums[1:])["right"].sum())
        return {"accuracy": right / samples, "macro_f1": confusion.macro_f1(sums[1:]), "loss": loss / samples}

    def details(self, sums: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """Precision, recall, F1 and samples of each class, and the confusion matrix: rows are labels."""
        return confusion.table(sums[1:], list(names))


@cache
def _on(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """(c,) fp32 on a device: copied only once, so that no step waits."""
    return torch.tensor(weights, dtype=torch.float32, device=device)
