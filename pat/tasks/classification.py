"""Sequence classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Features, List, Value
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pat.tasks import Batch, Encoder, Task, padded_width

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.config import DataConfig

# b samples of a batch, s tokens of its longest sample, c classes


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy over the classes, mean per sample."""

    name: str = "classification"
    num_labels: int | None = None  # null: as many as the training data has

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    labelled: ClassVar[bool] = True
    directions: ClassVar[Mapping[str, bool]] = {"accuracy": True, "loss": False}
    best_metric: ClassVar[str] = "accuracy"
    headline: ClassVar[str] = "accuracy"
    sum_names: ClassVar[tuple[str, ...]] = ("loss", "correct", "samples")

    def columns(self, cfg: DataConfig) -> dict[str, str]:
        """The text, perhaps its second part, and the label."""
        pair = {"text_pair": cfg.text_pair_column} if cfg.text_pair_column else {}
        return {"text": cfg.text_column, **pair, "label": cfg.label_column}

    def with_words(self, rows: dict[str, Dataset]) -> dict[str, Dataset]:
        """Whole numbers that do not count from 0, as stars from 1 to 5, are the names of their classes."""
        train = rows["train"]
        if getattr(train.features["label"], "names", None):
            return rows
        found = train.unique("label")
        whole = all(isinstance(value, int) for value in found)
        many = 2 * len(found) > len(train)  # rather an id than a label
        if not whole or many or self.num_labels not in (None, len(found)) or set(found) <= set(range(len(found))):
            return rows
        return {split: part.cast_column("label", Value("string")) for split, part in rows.items()}

    def label_names(self, train: Dataset) -> list[str]:
        """The classes: a ClassLabel's own names, words in sorted order (numbers by size), or the numbers 0..n-1."""
        feature = train.features["label"]
        if getattr(feature, "names", None):
            names = list(feature.names)
        else:
            names = self._counted(train.unique("label"))
        if self.num_labels is not None and len(names) > self.num_labels:
            raise ValueError(
                f"task.num_labels={self.num_labels}, but the training data has {len(names)}: {_few(names)}; "
                "null takes as many as there are."
            )
        return names + [str(i) for i in range(len(names), self.num_labels or 0)]

    def set_head(self, config: PretrainedConfig, names: Sequence[str]) -> bool:
        """One output a class."""
        if names:
            config.id2label = dict(enumerate(names))
            config.label2id = {name: i for i, name in enumerate(names)}
        return bool(names)

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str] | None
    ) -> Encoder:
        """One sample a row, cut to `max_length` tokens."""
        assert label_names is not None
        added = tokenizer.num_special_tokens_to_add(pair=False)
        if max_length <= added:
            raise ValueError(
                f"data.max_length={max_length} leaves no room for a text: the tokenizer adds {added} tokens of its "
                f"own, so give {added + 1} or more."
            )
        return _Rows(tokenizer, max_length, label_names)

    def collate(self, samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """input_ids, attention_mask, ... (b, s) and labels (b,), s the longest rounded up to a multiple of 8."""
        lengths = [len(ids) for ids in samples["input_ids"]]
        width = padded_width(max(lengths), tokenizer)
        batch = {"attention_mask": (torch.arange(width) < torch.tensor(lengths)[:, None]).long()}
        for name, values in samples.items():
            if name != "label":
                fill: Any = tokenizer.pad_token_id if name == "input_ids" else 0
                batch[name] = torch.tensor([[*value, *[fill] * (width - len(value))] for value in values])
        return batch | {"labels": torch.tensor(samples["label"])}

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """-log softmax(logits)[label], mean over the samples, fp32. logits (b, c)."""
        return F.cross_entropy(logits.float(), batch["labels"])

    def supervised(self, batch: Batch) -> Tensor:
        """(b,): every sample."""
        return torch.ones_like(batch["labels"], dtype=torch.float32)

    def sums(self, model: Any, batch: Batch) -> Tensor:
        """(3,) fp64: loss, correct answers, samples."""
        logits = self.outputs(model, batch).logits.float()  # (b, c)
        weight = batch["weight"].double()  # (b,)
        losses = F.cross_entropy(logits, batch["labels"], reduction="none").double()
        correct = logits.argmax(-1) == batch["labels"]
        return torch.stack([(losses * weight).sum(), (correct * weight).sum(), weight.sum()])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Accuracy in [0, 1] and mean loss."""
        loss, correct, samples = sums.tolist()
        return {"accuracy": correct / samples, "loss": loss / samples}

    def _counted(self, found: list[Any]) -> list[str]:
        if all(isinstance(value, str) for value in found):
            return sorted(found, key=int if all(_is_whole(value) for value in found) else None)
        numbers = {int(value) for value in found if isinstance(value, int)}  # bool too
        expected = range(self.num_labels or len(numbers))
        whole = len(numbers) == len(found)
        if not whole or not numbers <= set(expected):
            raise ValueError(
                f"The labels in the training data are {_few(found)}, but must be strings, or whole numbers "
                f"0..{len(expected) - 1 if numbers else 'n-1'}: map them to those, name another data.label_column"
                + (", or set task.num_labels=null to take them as they are." if whole and self.num_labels else ".")
            )
        return [str(i) for i in expected]


class _Rows(Encoder):
    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.label_names = label_names
        self.numbers = {name: i for i, name in enumerate(label_names)}
        self.cut = 0

    def features(self) -> Features:
        """What the tokenizer makes of a text, and the label."""
        columns = [name for name in self.tokenizer.model_input_names if name != "attention_mask"]
        return Features({name: List(Value("int32")) for name in columns} | {"label": Value("int64")})

    def counts(self) -> dict[str, int]:
        """Rows that were cut."""
        return {"rows_cut": self.cut}

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        texts: Any = rows["text"], rows.get("text_pair")
        encoded: Any = self.tokenizer(*texts, truncation=True, max_length=self.max_length, verbose=False)
        if encoded.encodings:
            self.cut += sum(bool(one.overflowing) for one in encoded.encodings)
        else:  # a tokenizer without its Rust half
            self.cut += sum(len(ids) > self.max_length for ids in self.tokenizer(*texts, verbose=False)["input_ids"])
        samples = {name: values for name, values in encoded.items() if name != "attention_mask"}
        for parts, ids in zip(zip(*filter(None, texts), strict=True), samples["input_ids"], strict=True):
            if not ids or not any(part.strip() for part in parts):  # of its own: most tokenizers add some
                raise ValueError(f"A text has no tokens: {parts[0]!r}; remove such rows.")
        return samples | {"label": [self._number(value) for value in rows["label"]]}

    def _number(self, label: Any) -> int:
        number = self.numbers.get(label) if isinstance(label, str) else label
        if not isinstance(number, int) or not 0 <= number < len(self.label_names):
            raise ValueError(f"The label {label!r} is not one of the training data's: {_few(self.label_names)}.")
        return int(number)


def _is_whole(word: str) -> bool:
    return word.removeprefix("-").isascii() and word.removeprefix("-").isdigit()


def _few(values: Sequence[Any]) -> str:
    shown = ", ".join(repr(value) for value in sorted(values, key=str)[:8])
    return shown if len(values) <= 8 else f"{shown}, ... ({len(values)})"
