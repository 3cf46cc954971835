"""Prepared data for a reader: figures of both splits, and samples as text with what the loss is on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from pat.common.text import size_in_words
from pat.data.checks import label_counts
from pat.data.example import coloured, decoded, plain, rest
from pat.data.prepare import CALIBRATION, SPLITS, PreparedData
from pat.data.sampler import first_indices, token_counts
from pat.schema import Config
from pat.tasks.base import IGNORED

CHUNK = 10_000  # samples whose flags are in memory at a time

# The lines of the table, in this order; lines that are missing or 0 in both splits are left out.
WORDINGS = {
    "rows": "rows",
    "rows_cut": "rows cut to data.max_length",
    "rows_dropped": "rows without a supervised token, dropped",
    "rows_joined": "rows where a completion's beginning is one token with the prompt's end, not learned",
    "system_prompts_dropped": "rows whose system prompt the chat template leaves out",
    "tools_dropped": "rows whose tools the chat template leaves out",
    "words_left_out": "words beyond data.max_length, or without a token",
    "rows_in_train": "rows that are in the training data, too",
    "samples": "samples made of them",
    "samples_used": "samples that the run uses (data.max_*_samples)",
    "tokens": "their tokens",
    "tokens_left_over": "tokens that fill no block",
    "length_p50": "tokens of a sample: half have at most",
    "length_p95": "95 % have at most",
    "length_max": "the longest has",
    "supervised": "tokens that the loss is on",
    "documents_per_sample": "packed: documents in a sample, mean",
    "fill": "packed: tokens of what a sample has room for",
    "fill_unpacked": "the same, had nothing been packed",
}
_FRACTIONS = ("supervised", "fill", "fill_unpacked")


def summarise(prepared: PreparedData, config: Config, steps_are_known: bool = True) -> dict[str, Any]:
    """Figures of both splits as plain values; those of samples are of what the run uses. No epochs without steps."""
    files = {file["filename"] for split in SPLITS for file in getattr(prepared, split).cache_files}
    samples = sum(prepared.mixture.draws) if prepared.mixture else len(prepared.train)
    drawn = config.train.num_steps * config.train.global_batch_size
    return {
        **{split: _split(prepared, split, config.data.max_length) for split in SPLITS},
        "epochs": drawn / samples if steps_are_known else None,
        "cache": prepared.info["cache"],
        "cache_bytes": sum(Path(file).stat().st_size for file in files),
        "built": prepared.info["built"],
    }


def _split(prepared: PreparedData, split: str, max_length: int) -> dict[str, Any]:
    samples, info = getattr(prepared, split), prepared.info
    lengths = token_counts(samples)
    tokens = int(lengths.sum())
    p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    figures: dict[str, Any] = {
        "samples_used": len(samples), "tokens": tokens,
        "length_p50": int(p50), "length_p95": int(p95), "length_max": int(lengths.max()),
    }  # fmt: skip
    counted = (
        "rows",
        "rows_cut",
        "words_left_out",
        "rows_dropped",
        "rows_joined",
        "system_prompts_dropped",
        "tools_dropped",
        "samples",
        "tokens_left_over",
    )
    figures |= {name: info[f"{split}_{name}"] for name in counted if f"{split}_{name}" in info}
    if split == "eval" and "eval_rows_in_train" in info:
        figures["rows_in_train"] = info["eval_rows_in_train"]
    if "supervised" in samples.column_names:
        documents, supervised = _flags(samples)
        figures["supervised"] = supervised / tokens
        if documents > len(samples):
            figures["documents_per_sample"] = documents / len(samples)
            figures["fill"] = tokens / (len(samples) * max_length)
            figures["fill_unpacked"] = tokens / (documents * max_length)
    if prepared.label_names:
        counts = label_counts(samples, len(prepared.label_names))
        figures["labels"] = dict(zip(prepared.label_names, counts.tolist(), strict=True))
    return figures


def _flags(samples: Dataset) -> tuple[int, int]:
    """(documents, supervised tokens)."""
    documents = supervised = 0
    batch: Any
    for batch in samples.select_columns(["lengths", "supervised"]).with_format("arrow").iter(CHUNK):
        documents += int(pc.list_value_length(batch["lengths"]).to_numpy().sum())  # pyright: ignore
        supervised += int(pc.sum(pc.list_flatten(batch["supervised"])).as_py() or 0)  # pyright: ignore
    return documents, supervised


def table(summary: dict[str, Any]) -> Table:
    """The figures, a line each."""
    shown = Table()
    for column in ("", *SPLITS):
        shown.add_column(column, justify="right" if column else "left")
    for name, words in WORDINGS.items():
        values = [summary[split].get(name) for split in SPLITS]
        if any(values):
            shown.add_row(words, *(_written(name, value) for value in values))
    for label in summary["train"].get("labels", {}):
        shown.add_row(Text(f"label {label}"), *(f"{summary[split]['labels'][label]:,}" for split in SPLITS))
    return shown


def _written(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if name in _FRACTIONS else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def where(summary: dict[str, Any]) -> str:
    """Where the data is, and how often the run sees it, in a sentence."""
    how = "tokenised now, in" if summary["built"] else "found in"
    size = size_in_words(summary["cache_bytes"])
    epochs = summary["epochs"]
    seen = "" if epochs is None else f"; the run sees the training samples {epochs:.3g} times"
    return f"{how} {summary['cache']} ({size}){seen}"


def chosen(n: int, count: int, index: int | None) -> list[int]:
    """Which of n samples to show: one, or `count` from all over. ValueError for one that is not there."""
    if index is None:
        return [i * n // min(count, n) for i in range(min(count, n))]
    if not 0 <= index < n:
        raise ValueError(f"--index {index}, but the split has {n} samples: give 0 to {n - 1}")
    return [index]


def calibrating(prepared: PreparedData, config: Config, count: int, index: int | None) -> tuple[str, list[int]]:
    """(their split, the first `count` samples on which methods are calibrated, or only the one at place `index`)."""
    split = "train" if prepared.calibration is None else CALIBRATION
    n, mixture = prepared.to_calibrate(), prepared.mixture if prepared.calibration is None else None
    places = range(min(count, n)) if index is None else chosen(n, count, index)
    order = first_indices(max(places) + 1, n, config.seed, mixture)
    return split, [order[place] for place in places]


def _by_word(ids: list[int], labels: list[int], names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """Each word with its label behind it, in brackets."""
    starts = [token for token, label in enumerate(labels) if label != IGNORED]
    words = [str(tokenizer.decode(ids[first:end])).strip() for first, end in pairwise([*starts, len(ids)])]
    return " ".join(f"{word}[{names[labels[first]]}]" for word, first in zip(words, starts, strict=True))


def sample_text(
    prepared: PreparedData, split: str, index: int, tokenizer: PreTrainedTokenizerBase, limit: int, colours: bool
) -> Text:
    """A sample: a headline with its label, then each document; what the loss is on in green, or in guillemets."""
    samples = getattr(prepared, split)
    sample: Any = samples[index]
    ids, flags = sample["input_ids"], sample.get("supervised")
    lengths = sample.get("lengths", [len(ids)])
    head = f"{split} sample {index} of {len(samples):,}: {len(ids):,} tokens"
    if flags is not None:
        head += f", {sum(flags):,} of them learned" + (f", {len(lengths)} documents" if len(lengths) > 1 else "")
    elif isinstance(sample.get("label"), list):
        head += f", {sum(label != IGNORED for label in sample['label']):,} words, each with its label"
    elif "label" in sample:
        names, label = prepared.label_names, sample["label"]
        head += f", label {names[label] if names else label}"
    else:
        head += ", all but the first learned"
    text = Text(head, "bold" if colours else "")
    start = 0
    for number, length in enumerate(lengths, 1):
        if len(lengths) > 1:
            text.append(f"\n--- document {number}, {length:,} tokens", "cyan" if colours else "")
        shown = slice(start, start + min(length, limit))
        text.append("\n")
        if isinstance(sample.get("label"), list):
            text.append(_by_word(ids[shown], sample["label"][shown], prepared.label_names or (), tokenizer), "not bold")
        elif flags is None:
            text.append(str(tokenizer.decode(ids[shown])), "not bold")
        else:
            runs = decoded(ids[shown], flags[shown], tokenizer)
            text.append_text(coloured(runs) if colours else Text(plain(runs)))
        text.append(rest(max(0, length - limit)))
        start += length
    return text
