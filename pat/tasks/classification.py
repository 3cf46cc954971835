"""Sequence classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Features, List, Value
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pat.common.text import short
from pat.tasks import confusion, sight
from pat.tasks.base import Batch, Encoder, Task, padded_width

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.schema import DataConfig


BALANCED = "balanced"
MANY = 1_000  # classes; more are rather texts or ids
WORDS = ("string", "large_string")  # types of a column

# b samples of a batch, s tokens of its longest sample, c classes


HEAD_KEYS = ("data.label_column", "model.replace_head", "optim.head_lr")  # of any new head
KEYS = ("data.text_pair_column", *HEAD_KEYS)


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
        """Labels are words in every split where the classes of training are: each file may type its labels otherwise.

        Whole numbers that do not count from 0, as stars from 1 to 5, are the names of their classes.
        """
        if self._are_names(rows["train"]):
            rows = rows | {"train": _worded(rows["train"])}
        kinds = {split: part.features["label"] for split, part in rows.items()}
        train = kinds["train"]
        if isinstance(train, ClassLabel):  # numbers are indices, but another ClassLabel may count in another order
            others = [s for s, kind in kinds.items() if isinstance(kind, ClassLabel) and kind.names != train.names]
        else:
            others = [s for s, kind in kinds.items() if kind.dtype not in WORDS] if train.dtype in WORDS else []
        return rows | {split: _worded(rows[split]) for split in others}

    def label_names(self, train: Dataset) -> list[str]:
        """The classes: a ClassLabel's own names, words in sorted order (numbers by size), or the numbers 0..n-1."""
        feature = train.features["label"]
        if getattr(feature, "names", None):
            names = list(feature.names)
        else:
            names = self._counted(train.unique("label"))
        if self.num_labels is not None and len(names) > self.num_labels:
            raise ValueError(
                f"task.num_labels={self.num_labels}, but the training data has {len(names)}: {few(names)}; "
                "null takes as many as there are."
            )
        return names + [str(i) for i in range(len(names), self.num_labels or 0)]

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
            tokenizer, max_length, partial(_number, {name: i for i, name in enumerate(label_names)}), "int64"
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

    def _are_names(self, train: Dataset) -> bool:
        """Whether the labels are whole numbers, but neither indices nor ids."""
        if isinstance(train.features["label"], ClassLabel):
            return False
        labels = train.unique("label")
        whole = all(isinstance(value, int) for value in labels)
        many = 2 * len(labels) > len(train)  # more likely an id than a label
        return whole and not many and self.num_labels in (None, len(labels)) and set(labels) != set(range(len(labels)))

    def _counted(self, labels: list[Any]) -> list[str]:
        if all(isinstance(value, str) for value in labels):
            return sorted(labels, key=int if all(_is_whole(value) for value in labels) else None)
        numbers = {int(value) for value in labels if isinstance(value, int)}  # bool too
        expected = range(self.num_labels or len(numbers))
        whole = len(numbers) == len(labels)
        if not whole or not numbers <= set(expected):
            raise ValueError(
                f"The labels in the training data are {few(labels)}, but must be strings, or whole numbers "
                f"0..{len(expected) - 1 if numbers else 'n-1'}: map them to those (a missing value makes a column of "
                "whole numbers one of 1.0, 2.0), or name another data.label_column"
                + (", or set task.num_labels=null to take them as they are" if whole and self.num_labels else "")
                + ("; where they are amounts, take task=regression." if _are_amounts(labels) else ".")
            )
        return [str(i) for i in expected]


def _are_amounts(labels: Sequence[Any]) -> bool:
    """Whether some are between whole numbers."""
    return any(isinstance(value, float) and math.isfinite(value) and value % 1 for value in labels)


def text_columns(cfg: DataConfig) -> dict[str, str]:
    """The text, perhaps its second part, and the label."""
    pair = {"text_pair": cfg.text_pair_column} if cfg.text_pair_column else {}
    return {"text": cfg.text_column, **pair, "label": cfg.label_column}


def set_classes(config: PretrainedConfig, names: Sequence[str]) -> bool:
    """Give a head one output a class; whether there are names."""
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    return bool(names)


def collated(samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, labels: torch.dtype) -> Batch:
    """input_ids, attention_mask, ... (b, s) and labels (b,), s the longest rounded up to a multiple of 8."""
    return padded(samples, tokenizer) | {"labels": torch.tensor(samples["label"], dtype=labels)}


def padded(samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """All columns but the label, and attention_mask, (b, s); s the longest rounded up to a multiple of 8."""
    lengths = [len(ids) for ids in samples["input_ids"]]
    width = padded_width(max(lengths), tokenizer)
    batch = {"attention_mask": (torch.arange(width) < torch.tensor(lengths)[:, None]).long()}
    for name, values in samples.items():
        if name != "label":
            fill: Any = tokenizer.pad_token_id if name == "input_ids" else 0
            batch[name] = torch.tensor([[*value, *[fill] * (width - len(value))] for value in values])
    return batch


class TextRows(Encoder):
    """A sample a row: the tokens of a text or of a pair, and the label as a number."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        number: Callable[[Any], int | float],  # of a label; ValueError where it has none
        dtype: str,  # of that number
    ) -> None:
        self.tokenizer, self.max_length, self.number, self.dtype = tokenizer, max_length, number, dtype
        self.cut = 0

    def features(self) -> Features:
        """What the tokenizer makes of a text, and the label."""
        columns = [name for name in self.tokenizer.model_input_names if name != "attention_mask"]
        return Features({name: List(Value("int32")) for name in columns} | {"label": Value(self.dtype)})

    def counts(self) -> dict[str, int]:
        """Rows that were cut."""
        return {"rows_cut": self.cut}

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        texts: Any = rows["text"], rows.get("text_pair")
        added = self.tokenizer.num_special_tokens_to_add(pair=texts[1] is not None)
        if self.max_length <= added:
            raise ValueError(
                f"data.max_length={self.max_length} leaves no room for a text: the tokenizer adds {added} tokens, "
                f"so give {added + 1} or more."
            )
        encoded: Any = self.tokenizer(*texts, truncation=True, max_length=self.max_length, verbose=False)
        if encoded.encodings:
            self.cut += sum(bool(one.overflowing) for one in encoded.encodings)
        else:  # a tokenizer without its Rust half
            self.cut += sum(len(ids) > self.max_length for ids in self.tokenizer(*texts, verbose=False)["input_ids"])
        samples = {name: values for name, values in encoded.items() if name != "attention_mask"}
        for pair, ids in zip(zip(*filter(None, texts), strict=True), samples["input_ids"], strict=True):
            if not ids or not any(part.strip() for part in pair):  # of its own: most tokenizers add some
                raise ValueError(f"A text has no tokens: {pair[0]!r}; remove such rows.")
        return samples | {"label": [self.number(value) for value in rows["label"]]}


def _worded(rows: Dataset) -> Dataset:
    """The rows with their labels as words: a ClassLabel's names, other values as they are written."""
    feature = rows.features["label"]
    if not isinstance(feature, ClassLabel):
        return rows.cast_column("label", Value("string"))
    names = dict(enumerate(feature.names))
    words = [names.get(number, str(number)) for number in rows["label"]]  # -1: not labelled
    return rows.remove_columns("label").add_column("label", words)  # pyright: ignore


def _number(numbers: Mapping[str, int], label: Any) -> int:
    """A label's place among the classes."""
    number = numbers.get(label) if isinstance(label, str) else label
    if not isinstance(number, int) or not 0 <= number < len(numbers):
        known, no_class = few(list(numbers)), len(numbers) > MANY or short(str(label)) != str(label)
        raise ValueError(
            f"The label {_shown(label)} is not one of the training data's ({known}): leave such rows out, or train on "
            "some." + " They look like texts or ids rather than classes: is data.label_column right?" * no_class
        )
    return int(number)


@cache
def _on(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """(c,) fp32 on a device: copied only once, so that no step waits."""
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _is_whole(word: str) -> bool:
    return word.removeprefix("-").isascii() and word.removeprefix("-").isdigit()


def few(values: Sequence[Any]) -> str:
    """At most eight of them, in words."""
    shown = ", ".join(map(_shown, sorted(values, key=str)[:8]))
    return shown if len(values) <= 8 else f"{shown}, ... ({len(values)})"


def _shown(value: Any) -> str:
    return repr(short(value) if isinstance(value, str) else value)
