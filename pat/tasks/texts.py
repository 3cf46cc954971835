"""Samples that are one text each, or a pair of texts: columns, tokens, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from datasets import Features, List, Value

from pat.tasks.base import Batch, Encoder, padded_width

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pat.schema import DataConfig

HEAD_KEYS = ("data.label_column", "model.replace_head", "optim.head_lr")  # of any new head
KEYS = ("data.text_pair_column", *HEAD_KEYS)

# b samples of a batch, s tokens of its longest sample


def text_columns(cfg: DataConfig) -> dict[str, str]:
    """The text, perhaps its second part, and the label."""
    pair = {"text_pair": cfg.text_pair_column} if cfg.text_pair_column else {}
    return {"text": cfg.text_column, **pair, "label": cfg.label_column}


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
