"""One training sample as the loss sees it, and what was done to the rows: said once when a run starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from pat.data.prepare import PreparedData
from pat.schema import DataConfig

SHOWN_TOKENS = 400
READ_FOR_ENDS = 100  # samples, spread over all: sources of a mixture may end differently

Runs = list[tuple[str, bool]]  # (text, supervised)


@dataclass(frozen=True)
class Example:
    """A document in runs of (text, supervised), and sentences about all of them."""

    notes: str
    runs: Runs
    left_out: int  # tokens of the document that are not shown
    ends: tuple[int, ...]  # tokens of the tokenizer's own that end documents, as the model learns them

    def plain(self) -> str:
        """Supervised text in guillemets."""
        return f"{self.notes}\nA sample; the loss is on what is in «»:\n{plain(self.runs)}{rest(self.left_out)}"

    def coloured(self) -> Text:
        """Supervised text in green, the rest dim."""
        text = Text(f"{self.notes}\nA sample; the loss is on what is ").append("green", "bold green").append(":\n")
        return text.append_text(coloured(self.runs)).append(rest(self.left_out))

    def show(self) -> None:
        """Print in colours on a terminal and plain elsewhere; also into this rank's log."""
        terminal = getattr(sys.stdout, "terminal", sys.stdout)
        if not terminal.isatty():
            print(self.plain(), flush=True)
            return
        Console(file=terminal, highlight=False).print(self.coloured(), soft_wrap=True)
        log: Any = getattr(sys.stdout, "log", None)
        if log is not None:
            log.write(self.plain() + "\n")


def example(prepared: PreparedData, cfg: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Example | None:
    """The last document of the first sample; None for a task that supervises all tokens alike."""
    if "supervised" not in prepared.train.column_names:
        return None
    sample: Any = prepared.train[0]
    start = sum(sample["lengths"][:-1])
    ids, flags = sample["input_ids"][start:], sample["supervised"][start:]
    ends = _ends(prepared.train, cfg.max_length, tokenizer)
    runs = decoded(ids[:SHOWN_TOKENS], flags[:SHOWN_TOKENS], tokenizer)
    return Example(_notes(prepared.info, cfg, tokenizer, ends), runs, len(ids[SHOWN_TOKENS:]), ends)


def _ends(train: Dataset, max_length: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The last supervised token of documents, white space aside, where it is an added one; documents of `max_length`
    tokens may be cut, and do not count."""
    found: dict[int, None] = {}
    rows: Any = train.select(range(0, len(train), max(1, len(train) // READ_FOR_ENDS)))
    for row in rows:
        start = 0
        for length in row["lengths"]:
            document = slice(start, start + length)
            learned = list(compress(row["input_ids"][document], row["supervised"][document]))
            last = next((token for token in reversed(learned) if str(tokenizer.decode([token])).strip()), None)
            if length < max_length and last in tokenizer.added_tokens_decoder:
                found[last] = None
            start += length
    return tuple(found)


def decoded(ids: Sequence[int], flags: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> Runs:
    """Tokens as text, in runs of equal flags."""
    return [
        (str(tokenizer.decode([token for token, _ in run])), bool(supervised))
        for supervised, run in groupby(zip(ids, flags, strict=True), key=lambda pair: pair[1])
    ]


def plain(runs: Runs) -> str:
    """Supervised text in guillemets."""
    return "".join(f"«{text}»" if supervised else text for text, supervised in runs)


def coloured(runs: Runs) -> Text:
    """Supervised text in green, the rest dim."""
    return Text.assemble(*((text, "bold green" if supervised else "dim") for text, supervised in runs))


def rest(left_out: int) -> str:
    """A note on tokens that are not shown, if any."""
    return f" ... ({left_out:,} more tokens)" if left_out else ""


def _notes(info: dict[str, Any], cfg: DataConfig, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> str:
    """Facts that the config does not show."""
    notes = [f"{info['train_rows']:,} training rows make {info['train_samples']:,} samples"]
    wordings = {
        "rows_cut": f"{{:,}} were cut to {cfg.max_length} tokens",
        "rows_dropped": "{:,} without a supervised token were dropped",
        "rows_joined": "{:,} lose the beginning of a completion, one token with the end of the prompt",
        "system_prompts_dropped": "the chat template leaves out the system prompt of {:,}",
        "tools_dropped": "the chat template leaves out the tools of {:,}",
    }
    notes += [words.format(count) for name, words in wordings.items() if (count := info.get(f"train_{name}"))]
    notes.append(f"{tokenizer.pad_token} pads")
    text = f"Data: {', '.join(notes)}."
    if others := [str(tokenizer.decode([token])) for token in ends if token != tokenizer.eos_token_id]:
        text += (
            f" Answers end with {' or '.join(others)}, which is not the tokenizer's end-of-text token "
            f"{tokenizer.eos_token}: generation_config.json of the run and of its exports names it as an end, too."
        )
    return text
