"""Chats: the next token of the answers, in rows of messages, prompts and completions, or plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from datasets import Features, List, Value
from torch import Tensor

from pat.tasks import formats, padding
from pat.tasks.base import IGNORED, Batch, Encoder, inputs, padded_width
from pat.tasks.causal_lm import CausalLM, sum_per_block
from pat.tasks.packing import best_fit, kept_apart
from pat.tasks.templates import ChatTemplate, Marked, SpanTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.schema import DataConfig


# b samples of a batch, s tokens of its longest sample, v vocabulary, D documents of all samples

CHOICES = {
    "loss_on": (None, "answers", "completion", "all"),
    "truncation_side": ("right", "left"),
    "empty_rows": ("error", "drop"),
    "packing": ("none", "best_fit"),
}
JOINED = (
    "the tokenizer joins the end of the prompt with all of the completion, of which nothing is left to learn: let "
    "the prompt (of messages, the chat template's generation prompt) end without its space, and the completion begin "
    "with it"
)
# Model types for which a test has shown that packed documents stay apart. Others may attend across them in silence.
PACKABLE = (
    "cohere", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2",
    "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
)  # fmt: skip


@dataclass(frozen=True)
class Chat(CausalLM):
    """Cross-entropy of each supervised token given those before it in its document, mean per supervised token.

    A row is one of the formats of `pat.tasks.formats`; the tokenizer's chat template makes it text.
    Raises ValueError for an option that is not allowed.
    """

    name: str = "chat"
    # answers: of the assistant, and the ends of their turns | completion: those after the prompt | all; null: answers
    # of messages, the completion of a prompt, all of a text
    loss_on: str | None = None
    truncation_side: str = "right"  # which end is cut from a row longer than data.max_length
    empty_rows: str = "error"  # a row without a supervised token: error | drop, and count
    packing: str = "none"  # none: one row a sample, padded | best_fit: as many as fit into data.max_length
    template_options: Mapping[str, Any] = field(default_factory=dict)  # for the chat template, e.g. enable_thinking

    uneven: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"task.{key}='{getattr(self, key)}': allowed are {', '.join(str(a or 'null') for a in allowed)}."
                )

    def columns_in(self, cfg: DataConfig, present: Sequence[str]) -> dict[str, str]:
        """Those of the first format that the rows have. Raises ValueError."""
        return formats.columns_in(present, cfg.text_column)

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str] | None
    ) -> Encoder:
        """One sample a row, or packed, of at most `max_length` tokens."""
        if max_length < 2:
            raise ValueError(f"data.max_length={max_length}: a sample needs 2 tokens or more to predict one.")
        return _Documents(self, tokenizer, max_length)

    def check_model(self, config: PretrainedConfig) -> None:
        """Packing is for model types for which a test has shown that documents stay apart. Raises ValueError."""
        super().check_model(config)
        if self.packing != "none" and config.model_type not in PACKABLE:
            raise ValueError(
                f"task.packing={self.packing} is not known to keep documents apart in a {config.model_type} model, but "
                f"in {', '.join(PACKABLE)}: take task.packing=none."
            )

    def collate(self, samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """input_ids, labels, attention_mask (b, s), padded on the right; s the longest rounded up to a multiple of 8.

        Packed, also position_ids (b, s), which begin again with each document and with the padding, and cu_seq_lens
        (D+1,), int32, where the documents and paddings of all samples begin and end in the flattened batch.
        """
        rows = samples["input_ids"]
        width = padded_width(max(map(len, rows)), tokenizer)
        ids = torch.full((len(rows), width), int(tokenizer.pad_token_id))  # pyright: ignore
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for i, (row, flags) in enumerate(zip(rows, samples["supervised"], strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, : len(row)] = torch.where(torch.tensor(flags), ids[i, : len(row)], IGNORED)
            mask[i, : len(row)] = 1
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if self.packing == "none":
            return batch
        lengths_and_padding = [n for lengths in samples["lengths"] for n in (*lengths, width - sum(lengths)) if n]
        positions = torch.cat([torch.arange(n) for n in lengths_and_padding]).view_as(ids)
        ends = torch.from_numpy(np.cumsum([0, *lengths_and_padding], dtype=np.int32))
        return batch | {"position_ids": positions, "cu_seq_lens": ends}

    def outputs(self, model: Any, batch: Batch, **options: Any) -> Any:
        """What the model makes of a batch; of a packed one without attention between its documents."""
        given = inputs(batch)
        ends = given.pop("cu_seq_lens", None)
        if ends is None:
            return model(**given, **self.options, **options)
        mask = given.pop("attention_mask")
        apart = kept_apart(getattr(model, "module", model).config, ends, given["input_ids"].shape[1])
        with padding.withheld(mask):
            return model(**given, **apart, **self.options, **options)

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """-log softmax(logits_i)[label_i+1], mean over the labels of the batch that are not -100, fp32."""
        return sum_per_block(logits, batch["labels"]).sum() / self.supervised(batch).sum()

    def supervised(self, batch: Batch) -> Tensor:
        """(b, s): where the next token has a label."""
        counts = torch.zeros_like(batch["labels"], dtype=torch.float32)
        counts[:, :-1] = batch["labels"][:, 1:] != IGNORED
        return counts


class _Documents(Encoder):
    """Rows to samples: input_ids, supervised (whether each token is learned), lengths (of the sample's documents)."""

    batch_rows: ClassVar[int] = 10_000  # enough for packing to leave little room

    def __init__(self, task: Chat, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.task, self.tokenizer, self.max_length = task, tokenizer, max_length
        self.tokenize = SpanTokenizer(tokenizer)
        self.template: ChatTemplate | None = None
        self.cut = self.dropped = self.joined = 0

    def features(self) -> Features:
        """Compact: a flag is a bit."""
        return Features(
            {"input_ids": List(Value("int32")), "supervised": List(Value("bool")), "lengths": List(Value("int32"))}
        )

    def counts(self) -> dict[str, int]:
        """Rows that were cut, or dropped, or lost their system prompt, tools or the beginning of their completion."""
        return {
            "rows_cut": self.cut,
            "rows_dropped": self.dropped,
            "rows_joined": self.joined,
            "system_prompts_dropped": self.template.dropped_system_prompts if self.template else 0,
            "tools_dropped": self.template.dropped_tools if self.template else 0,
        }

    def why_none(self) -> str:
        """Because no row has a token to learn."""
        return f"none has a supervised token ({self.cut} were cut): check the roles, or give a larger data.max_length"

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        documents = list(formats.documents(rows))
        tokenized = self.tokenize([self._marked(document) for document in documents])
        kept: list[tuple[list[int], list[bool]]] = []
        for document, (ids, flags, joined, lost) in zip(documents, tokenized, strict=True):
            if isinstance(document, formats.Text):
                ids, flags = self._ended(ids, flags)
            ids, flags = self._fitting(ids, flags)
            if any(flags) and not lost:
                kept.append((ids, flags))
                self.joined += joined
            elif self.task.empty_rows == "drop":
                self.dropped += 1
            else:
                limit = f"data.max_length={self.max_length}"
                problem = "An answer would not be learned" if lost else f"A row has no supervised token within {limit}"
                why = JOINED if lost else formats.without_answer(document) or "give a larger max_length"
                raise ValueError(
                    f"{problem}: {str(document)[:300]}; {why}, remove such rows, or take task.empty_rows=drop."
                )
        bins = [[i] for i in range(len(kept))]
        if self.task.packing == "best_fit":
            bins = best_fit([len(ids) for ids, _ in kept], self.max_length)
        return {
            "input_ids": [[token for i in some for token in kept[i][0]] for some in bins],
            "supervised": [[flag for i in some for flag in kept[i][1]] for some in bins],
            "lengths": [[len(kept[i][0]) for i in some] for some in bins],
        }

    def _marked(self, document: formats.Document) -> Marked:
        wanted = self.task.loss_on
        if isinstance(document, formats.Text):
            self._allowed(("completion", "all") if document.prompt is not None else ("all",), "strings")
            prompt = document.prompt or ""
            text = prompt + document.completion
            return Marked(text, [(0 if wanted == "all" else len(prompt), len(text))])
        given = document.num_prompt
        self._allowed(("answers", "all") if given is None else ("completion", "answers", "all"), "messages")
        if self.template is None:
            self.template = ChatTemplate(self.tokenizer, self.task.template_options)
            self.template.check_options(self.task.template_options)
        if wanted == "all":
            text = self.template.text(document)
            return Marked(text, [(0, len(text))])
        return self.template.mark(document, given if given is not None and wanted != "answers" else 0)

    def _allowed(self, allowed: Sequence[str], kind: str) -> None:
        if self.task.loss_on not in (None, *allowed):
            raise ValueError(
                f"task.loss_on={self.task.loss_on} means nothing for rows of {kind} without it: allowed are "
                f"{', '.join(allowed)}, or null."
            )

    def _ended(self, ids: list[int], flags: list[bool]) -> tuple[list[int], list[bool]]:
        """A text between the tokens that begin (where the tokenizer has one for every text) and end it."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError("The tokenizer has no end-of-text token to end a text: set its eos_token.")
        begins = bos is not None and self.tokenizer("")["input_ids"][:1] == [bos] and ids[:1] != [bos]
        ends = ids[-1:] != [eos]
        return [bos] * begins + ids + [eos] * ends, [False] * begins + flags + [True] * ends  # pyright: ignore

    def _fitting(self, ids: list[int], flags: list[bool]) -> tuple[list[int], list[bool]]:
        """At most max_length tokens; nothing predicts the first."""
        if len(ids) > self.max_length:
            self.cut += 1
            part = slice(self.max_length) if self.task.truncation_side == "right" else slice(-self.max_length, None)
            ids, flags = ids[part], flags[part]
        return ids, [False, *flags[1:]]
