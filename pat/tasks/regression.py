"""Regression: a number for a text, or for a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import ClassLabel
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pat.common.text import few
from pat.tasks import sight
from pat.tasks.base import Batch, Encoder, Task
from pat.tasks.texts import KEYS, TextRows, collated, text_columns

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.schema import DataConfig


# b samples of a batch, N of the evaluation; p what the model answers, y the label


@dataclass(frozen=True)
class Regression(Task):
    """Mean squared error of the model's one output, (p - y)^2, mean per sample; labels as they are."""

    name: str = "regression"

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    keys: ClassVar[tuple[str, ...]] = KEYS
    per_sample: ClassVar[bool] = True
    distribution: ClassVar[bool] = False
    worse: ClassVar[float] = 100.0  # one label far from the others may have most of their variance
    directions: ClassVar[Mapping[str, bool]] = {"mse": False, "pearson": True, "spearman": True}
    best_metric: ClassVar[str] = "mse"
    headline: ClassVar[str] = "spearman"
    sample_metric: ClassVar[str] = "mse"

    def columns(self, cfg: DataConfig) -> dict[str, str]:
        """The text, perhaps its second part, and the label."""
        return text_columns(cfg)

    def with_words(self, rows: dict[str, Dataset]) -> dict[str, Dataset]:
        """A class column's values are the numbers that its classes are called, not their indices. Raises ValueError."""
        return {split: _numbered(part, split) for split, part in rows.items()}

    def label_names(self, train: Dataset) -> None:
        """No classes."""
        return None

    def check_model(self, config: PretrainedConfig) -> None:
        """A model that reads what padding fills is refused. Raises ValueError."""
        sight.check_summary(config)

    def set_head(self, config: PretrainedConfig, names: Sequence[str]) -> bool:
        """One output."""
        config.num_labels = 1
        config.problem_type = "regression"
        return True

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str] | None
    ) -> Encoder:
        """One sample a row, cut to `max_length` tokens."""
        return TextRows(tokenizer, max_length, _number, "float64")

    def chance_loss(self, config: PretrainedConfig, labels: npt.NDArray[Any]) -> float:
        """The variance of the labels: the squared error of their mean."""
        return float(labels.var())

    def collate(self, samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """input_ids, attention_mask, ... (b, s) and labels (b,), fp32."""
        return collated(samples, tokenizer, torch.float32)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """(p - y)^2, mean over the samples, fp32. logits (b, 1)."""
        return (logits[:, 0].float() - batch["labels"]).square().mean()

    def supervised(self, batch: Batch) -> Tensor:
        """(b,): every sample."""
        return torch.ones_like(batch["labels"], dtype=torch.float32)

    def sums(self, model: Any, batch: Batch) -> Tensor:
        """(3, N) fp64: p, y and 1 where the sample is in the batch, elsewhere 0.

        So a sum over batches and processes holds every answer, exactly and in one order: Spearman's rho is not a sum.
        """
        answers = self.outputs(model, batch).logits[:, 0].double()  # (b,)
        counts = batch["weight"] > 0
        rows = torch.stack([answers, batch["labels"].double(), torch.ones_like(answers)])
        table = torch.zeros(3, int(batch["num_samples"]), dtype=torch.float64, device=answers.device)
        return table.index_add_(1, batch["sample"][counts], rows[:, counts])

    def sample_values(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(p - y)^2 of each sample; all count alike."""
        errors = (logits[:, 0].double() - batch["labels"]).square()
        return errors, torch.ones_like(errors)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Mean squared error, Pearson's r, and Spearman's rho: r of the places in order. 0 where either is constant."""
        p, y = sums[:2, sums[2] > 0]
        return {
            "mse": float((p - y).square().mean()),
            "pearson": correlation(p, y),
            "spearman": correlation(ranks(p), ranks(y)),
        }


def correlation(p: Tensor, y: Tensor) -> float:
    """sum(p y) / sqrt(sum(p^2) sum(y^2)), both centred, (N,) fp64; NaN where one is not a number."""
    p, y = p - p.mean(), y - y.mean()
    scale = float(p.square().sum() * y.square().sum())
    return float((p * y).sum()) / math.sqrt(scale) if scale != 0.0 else 0.0


def ranks(values: Tensor) -> Tensor:
    """(N,) fp64: the place of each value in their order, equal ones share the mean of their places. All NaN where one
    is not finite, which has no place."""
    if not bool(values.isfinite().all()):
        return torch.full_like(values, math.nan, dtype=torch.float64)
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[which]


def _numbered(rows: Dataset, split: str) -> Dataset:
    feature = rows.features["label"]
    if not isinstance(feature, ClassLabel):
        return rows
    for name in feature.names:
        try:
            _number(name)
        except ValueError:
            raise ValueError(
                f"The labels of data.{split} are classes ({few(feature.names)}), which are no numbers: name another "
                "data.label_column, or take task=classification."
            ) from None
    names = dict(enumerate(feature.names))
    words = [names.get(index) for index in rows["label"]]  # -1: not labelled
    return rows.remove_columns("label").add_column("label", words)  # pyright: ignore


def _number(label: Any) -> float:
    number = math.nan
    if isinstance(label, int | float | str | Decimal):
        try:
            number = float(label)
        except ValueError:
            pass
    if not math.isfinite(number):
        raise ValueError(f"The label {label!r} is not a number: fix the row, or take task=classification for words.")
    return number
