"""Token classification: a label for each word of a text, as for names of persons and places, or parts of speech."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Features, List, Value
from torch import Tensor
from transformers import AutoModelForTokenClassification

from pat.common.text import short
from pat.common.typed import untyped
from pat.tasks.base import IGNORED, Batch, Encoder, Task
from pat.tasks.labels import in_order, set_classes
from pat.tasks.spans import OUTSIDE, Tags, tags_of
from pat.tasks.texts import HEAD_KEYS, padded

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.schema import DataConfig

TEXTS, LABELS = ("tokens", "words"), ("ner_tags", "tags", "pos_tags")  # columns where the config's own are not there
OTHERS = 3  # columns of `token_sums` before those of spans

# b samples of a batch, s tokens of its longest sample, c labels, k kinds of spans


@dataclass(frozen=True)
class TokenClassification(Task):
    """Cross-entropy over the labels of each word's first token, mean per word. Text before or behind a word counts as
    context only."""

    name: str = "token_classification"

    auto_model: ClassVar[Any] = AutoModelForTokenClassification
    keys: ClassVar[tuple[str, ...]] = HEAD_KEYS
    labelled: ClassVar[bool] = True
    by_word: ClassVar[bool] = True
    uneven: ClassVar[bool] = True
    directions: ClassVar[Mapping[str, bool]] = {
        "f1": True, "precision": True, "recall": True, "accuracy": True, "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "f1"
    headline: ClassVar[str] = "f1"
    sample_metric: ClassVar[str] = "accuracy"

    def columns(self, cfg: DataConfig) -> dict[str, str]:
        """The words, and their labels."""
        return {"text": cfg.text_column, "label": cfg.label_column}

    def columns_in(self, cfg: DataConfig, present: Sequence[str]) -> dict[str, str]:
        """The same; where one is not there, what data sets of the hub call it."""
        others = {"text": TEXTS, "label": LABELS}
        return {
            name: column if column in present else next((one for one in others[name] if one in present), column)
            for name, column in self.columns(cfg).items()
        }

    def with_words(self, rows: dict[str, Dataset]) -> dict[str, Dataset]:
        """Labels by their names: each split may number its classes in an order of its own."""
        return {split: _named(part) for split, part in rows.items()}

    def label_names(self, train: Dataset) -> list[str]:
        """The labels in the training rows, sorted, O first."""
        found = {label for labels in train["label"] for label in _split(labels)}
        if None in found:
            raise ValueError(f"A word of the training data has no label (null): label it {OUTSIDE}, or leave it out.")
        if not all(isinstance(label, str) for label in found):
            raise ValueError(
                f"The labels of words in the training data are numbers ({in_order(list(found))}), which do not say "
                f"what they mean: write their names, such as {OUTSIDE}, B-PER and I-PER."
            )
        return sorted(found, key=lambda name: (name != OUTSIDE, name))

    def set_head(self, config: PretrainedConfig, names: Sequence[str]) -> bool:
        """One output a label."""
        return set_classes(config, names)

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str] | None
    ) -> Encoder:
        """One sample a row, cut to `max_length` tokens."""
        assert label_names is not None
        return LabelledWords(tokenizer, max_length, {name: i for i, name in enumerate(label_names)})

    def chance_loss(self, config: PretrainedConfig, labels: npt.NDArray[Any]) -> float:
        """ln(labels)."""
        return math.log(config.num_labels or 1)

    def collate(self, samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """input_ids, attention_mask, ... and labels (b, s), s the longest rounded up to a multiple of 8."""
        batch = padded(samples, tokenizer)
        width = batch["input_ids"].shape[1]
        labels = [[*given, *[IGNORED] * (width - len(given))] for given in samples["label"]]
        return batch | {"labels": torch.tensor(labels)}

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """-log softmax(logits)[label], mean over the words, fp32. logits (b, s, c)."""
        labels = batch["labels"].flatten()
        total = F.cross_entropy(logits.float().flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    def supervised(self, batch: Batch) -> Tensor:
        """(b, s): the first token of each word."""
        return (batch["labels"] != IGNORED).float()

    def sums(self, model: Any, batch: Batch) -> Tensor:
        """(3 + 3 k,) fp64: the columns of `token_sums`, added up."""
        return (self.token_sums(model, batch) * batch["weight"].double()[:, None]).sum(0)

    def token_sums(self, model: Any, batch: Batch) -> Tensor:
        """(b, 3 + 3 k) fp64: words whose label has the highest logit, words, loss; and of each kind of span those that
        were found, that were answered, and that are in the labels. NaN where a logit of a word is not finite."""
        logits, labels = self.outputs(model, batch).logits.float(), batch["labels"]
        right, words = _counted(logits, labels)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        tags = tags_of(_names(model))
        rows = zip(logits.argmax(-1).cpu(), labels.cpu(), (labels != IGNORED).cpu(), strict=True)
        spans = [_spans(tags, said[of].tolist(), row[of].tolist()) for said, row, of in rows]
        found = torch.tensor(spans, dtype=torch.float64, device=logits.device).masked_fill(
            right.isnan()[:, None], math.nan
        )
        return torch.cat([torch.stack([right, words, losses.double().sum(1)], 1), found], 1)

    def sample_values(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The share of a sample's words whose label has the highest logit, NaN where one is not finite; and how many
        words it has."""
        right, words = _counted(logits, batch["labels"])
        return right / words.clamp(min=1.0), words

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Precision p = found / answered, recall r = found / labelled and F1 = 2 p r / (p + r) of spans, all kinds
        together, 0 where 0 / 0; accuracy of words in [0, 1], mean loss. A span counts as found if both its ends and its
        kind are right. Source: Tjong Kim Sang & De Meulder 2003, arXiv:cs/0306050."""
        right, words, loss = sums[:OTHERS].tolist()
        found, answered, labelled = sums[OTHERS:].view(-1, 3).sum(0).tolist()
        return {
            **_scores(found, answered, labelled),
            "accuracy": right / words if words else math.nan,
            "loss": loss / words if words else math.nan,
        }

    def details(self, sums: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """Precision, recall, F1 and number of the spans of each kind."""
        kinds, counts = tags_of(tuple(names)).kinds, sums[OTHERS:].view(-1, 3).tolist()
        return {
            "classes": {
                kind: _scores(*each) | {"samples": int(each[2]) if math.isfinite(each[2]) else 0}
                for kind, each in zip(kinds, counts, strict=True)
            }
        }


class LabelledWords(Encoder):
    """A sample a row: the tokens of the words, joined by spaces, and for each token the number of its word's label, of
    a word's further tokens and of all others IGNORED."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, numbers: Mapping[str, int]) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                "task=token_classification needs to know of which word a token is, and this tokenizer "
                f"({type(tokenizer).__name__}) does not say: take a model whose tokenizer has a tokenizer.json."
            )
        self.tokenizer, self.max_length, self.numbers = tokenizer, max_length, numbers
        self.cut = self.words_left_out = 0

    def features(self) -> Features:
        """What the tokenizer makes of a text, and the labels."""
        columns = [name for name in self.tokenizer.model_input_names if name != "attention_mask"]
        return Features({name: List(Value("int32")) for name in (*columns, "label")})

    def counts(self) -> dict[str, int]:
        """Rows that were cut, and words that have no token."""
        return {"rows_cut": self.cut, "words_left_out": self.words_left_out}

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        words = [_split(each) for each in rows["text"]]
        labels = [self._numbered(*pair) for pair in zip(words, map(_split, rows["label"]), strict=True)]
        texts = [" ".join(each) for each in words]
        options: dict[str, Any] = {"truncation": True, "max_length": self.max_length, "return_offsets_mapping": True}
        encoded: Any = self.tokenizer(texts, verbose=False, **options)
        offsets = encoded.pop("offset_mapping")
        self.cut += sum(bool(one.overflowing) for one in encoded.encodings)
        samples = {name: values for name, values in encoded.items() if name != "attention_mask"}
        samples["label"] = [self._of_tokens(*each) for each in zip(words, labels, offsets, strict=True)]
        return samples

    def _numbered(self, words: Sequence[Any], labels: Sequence[Any]) -> list[int]:
        if len(words) != len(labels):
            raise ValueError(f"A row has {len(words)} words and {len(labels)} labels: give one label for each word.")
        if not words or not all(isinstance(word, str) for word in words):
            raise ValueError("A row has no words, or one that is no text: remove such rows.")
        unknown = [label for label in labels if label not in self.numbers]
        if unknown:
            raise ValueError(
                f"The label {unknown[0]!r} is not one of the training data's ({in_order(list(self.numbers))}): leave "
                "such rows out, or train on some."
            )
        return [self.numbers[label] for label in labels]

    def _of_tokens(
        self,
        words: Sequence[str],
        labels: Sequence[int],
        offsets: Sequence[tuple[int, int]],  # of each token the places of its characters in the text
    ) -> list[int]:
        ends = np.cumsum([len(word) + 1 for word in words])  # of each word with the space behind it
        last = np.array([end - 1 for _, end in offsets])  # -1: a token of no text
        owner = np.searchsorted(ends, last, side="right")
        made, labelled = [IGNORED] * len(offsets), set[int]()
        for token, word in enumerate(owner.tolist()):
            if last[token] >= 0 and last[token] < ends[word] - 1 and word not in labelled:
                made[token] = labels[word]
                labelled.add(word)
        if not labelled:
            raise ValueError(f"No word of a text has a token: {short(' '.join(words))!r}; remove such rows.")
        self.words_left_out += len(words) - len(labelled)
        return made


def _counted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """((b,), (b,)) fp64: words whose label has the highest logit, NaN where one is not finite; and words."""
    words = labels != IGNORED
    unknown = (words & ~logits.isfinite().all(-1)).any(1)
    right = ((logits.argmax(-1) == labels) & words).sum(1).double()
    return right.masked_fill(unknown, math.nan), words.sum(1).double()


def _names(model: Any) -> tuple[str, ...]:
    """The names of a model's labels; the model may be in a DeepSpeed engine."""
    names: dict[int, str] = untyped(getattr(model, "module", model)).config.id2label
    return tuple(names[number] for number in sorted(names))


def _spans(tags: Tags, answers: Sequence[int], labels: Sequence[int]) -> list[float]:
    """Of each kind: spans that were found, that were answered, and that are in the labels."""
    answered, labelled = tags.spans(answers), tags.spans(labels)
    sets = answered & labelled, answered, labelled
    return [float(sum(span[2] == kind for span in each)) for kind in range(len(tags.kinds)) for each in sets]


def _scores(found: float, answered: float, labelled: float) -> dict[str, float]:
    """What is 0 / 0 is 0, as in conlleval."""
    return {
        "f1": 2 * found / max(answered + labelled, 1.0),
        "precision": found / max(answered, 1.0),
        "recall": found / max(labelled, 1.0),
    }


def _named(rows: Dataset) -> Dataset:
    """The rows with the names of classes that their column's type numbers."""
    feature = rows.features["label"]
    inner = getattr(feature, "feature", None)
    if not isinstance(inner, ClassLabel):
        return rows
    names = [[_name(inner.names, number, row) for number in labels] for row, labels in enumerate(rows["label"], 1)]
    return rows.remove_columns("label").add_column("label", names)  # pyright: ignore


def _name(names: Sequence[str], number: int, row: int) -> str:
    if 0 <= number < len(names):
        return names[number]
    raise ValueError(
        f"Row {row} has a word with the label {number}, but the column counts its {len(names)} labels from 0 "
        f"({in_order(names)}): give words that do not count the label {OUTSIDE}, or leave such rows out."
    )


def _split(value: Any) -> list[Any]:
    """A list as it is, or the parts of a text between spaces."""
    return value.split() if isinstance(value, str) else list(value)
