"""Causal language modelling: the next token, everywhere, in blocks of equal length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Features, List, Value
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from pat.tasks import chunked_loss, sight
from pat.tasks.base import IGNORED, Batch, Encoder, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.schema import DataConfig


# b blocks of a batch, s tokens of a block, v vocabulary

CHUNK_ELEMENTS = 1 << 26  # logits that are held in fp32 at a time: 256 MB
LOG_MAX = 700.0  # exp of more overflows


@dataclass(frozen=True)
class CausalLM(Task):
    """Cross-entropy of each token given those before it in its block, mean per token."""

    name: str = "causal_lm"
    # null: the model computes all logits. Not in the key of prepared data: the samples are the same
    loss_chunk_tokens: int | None = field(default=None, repr=False)

    auto_model: ClassVar[Any] = AutoModelForCausalLM
    directions: ClassVar[Mapping[str, bool]] = {"loss": False, "perplexity": False}
    best_metric: ClassVar[str] = "loss"
    headline: ClassVar[str] = "perplexity"
    sample_metric: ClassVar[str] = "loss"
    options: ClassVar[Mapping[str, Any]] = {"use_cache": False}  # `use_cache` in the model's config stays unchanged

    def __post_init__(self) -> None:
        """Raises ValueError for a chunk without tokens."""
        if self.loss_chunk_tokens is not None and self.loss_chunk_tokens < 1:
            raise ValueError(f"task.loss_chunk_tokens={self.loss_chunk_tokens}, but a chunk has at least 1 token.")

    @property
    def chunk_tokens(self) -> int | None:
        """Rows of logits at a time."""
        return self.loss_chunk_tokens

    def check_model(self, config: PretrainedConfig) -> None:
        """It must not see what comes next, and chunks are for types whose logits are their head's. ValueError."""
        sight.check_causal(config)
        if self.loss_chunk_tokens is not None:
            chunked_loss.check(config)

    def columns(self, cfg: DataConfig) -> dict[str, str]:
        """The text."""
        return {"text": cfg.text_column}

    def label_names(self, train: Dataset) -> None:
        """A language model has no classes."""
        return None

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str] | None
    ) -> Encoder:
        """Documents, each ended by the end-of-text token, cut into blocks of exactly `max_length` tokens."""
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end-of-text token to part documents: is it an encoder's? Take a decoder, or "
                "recipe=encoder for a classifier; else set its eos_token."
            )
        if max_length < 2:
            raise ValueError(f"data.max_length={max_length}: a block needs 2 tokens or more to predict one.")
        return _Blocks(tokenizer, max_length)

    def collate(self, samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """input_ids and labels (b, s), the same tokens; no attention mask, as nothing is padded."""
        ids = torch.from_numpy(np.asarray(samples["input_ids"], dtype=np.int64))
        return {"input_ids": ids, "labels": ids}

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Mean loss, fp32."""
        if self.loss_chunk_tokens is None:
            return super().loss(model, batch)
        counts, targets, size = self.supervised(batch), next_labels(batch["labels"]), self.loss_chunk_tokens

        def summed(head: chunked_loss.Head, hidden: Tensor) -> Tensor:
            return chunked_loss.sums(head, hidden, lambda logits, rows: row_losses(logits, targets[rows]), counts, size)

        with chunked_loss.at_head(model, summed):
            return self.outputs(model, batch).logits[0] / counts.sum()

    def sum_per_sample(self, model: Any, batch: Batch) -> Tensor:
        """(b,) fp32: the losses of each sample summed; without a gradient where they are chunked."""
        if self.loss_chunk_tokens is None:
            return sum_per_block(self.outputs(model, batch).logits, batch["labels"])
        targets, size = next_labels(batch["labels"]), self.loss_chunk_tokens

        def each(head: chunked_loss.Head, hidden: Tensor) -> Tensor:
            return chunked_loss.per_row(head, hidden, lambda logits, rows: row_losses(logits, targets[rows]), size)

        with chunked_loss.at_head(model, each):
            return self.outputs(model, batch).logits.sum((1, 2))

    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """-log softmax(logits_i)[token_i+1], mean over the b (s - 1) predicted tokens, fp32."""
        return sum_per_block(logits, batch["labels"]).sum() / batch["labels"][:, 1:].numel()

    def supervised(self, batch: Batch) -> Tensor:
        """(b, s): all but the last token of a block predict one."""
        counts = torch.ones_like(batch["labels"], dtype=torch.float32)
        counts[:, -1] = 0.0
        return counts

    def fewest_labels(self, max_length: int) -> int:
        """Of a whole block; of a row as long as its text 1."""
        return 1 if self.uneven else max_length - 1

    def sums(self, model: Any, batch: Batch) -> Tensor:
        """(2,) fp64: loss, predicted tokens."""
        losses, tokens = self.token_sums(model, batch).unbind(1)
        weight = batch["weight"].double()  # (b,)
        return torch.stack([(losses * weight).sum(), (tokens * weight).sum()])

    def token_sums(self, model: Any, batch: Batch) -> Tensor:
        """(b, 2) fp64: loss, predicted tokens."""
        losses = self.sum_per_sample(model, batch).double()
        return torch.stack([losses, self.supervised(batch).sum(1).double()], dim=1)

    def sample_values(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss of each sample's predicted tokens, and how many there are."""
        tokens = self.supervised(batch).sum(1).double()
        return sum_per_block(logits, batch["labels"]).double() / tokens.clamp(min=1.0), tokens

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Mean loss in nats per token, and its exponential."""
        total, tokens = sums.tolist()
        loss = total / tokens
        return {"loss": loss, "perplexity": math.exp(min(loss, LOG_MAX))}


def next_labels(labels: Tensor) -> Tensor:
    """(n,) the label of the token after each of (b, s), flattened; -100 after a sample's last."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()


def row_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(m, 1) fp32: -log softmax(logits)[target] of each row, 0 where the target is -100. logits (m, v)."""
    return F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=IGNORED)[:, None]


def sum_per_block(logits: Tensor, labels: Tensor) -> Tensor:
    """(b,) fp32: the losses of each block summed, 0 where the next label is -100. logits (b, s, v), labels (b, s).

    The fp32 copy of the logits, its softmax and its gradient exist for CHUNK_ELEMENTS at a time: with a vocabulary of
    128,000 they would be 4 GB each at 8,000 tokens.
    """
    width = max(1, CHUNK_ELEMENTS // (logits.shape[0] * logits.shape[2]))  # tokens of each block in a chunk
    last = logits.shape[1] - 1
    if last <= width:
        return _chunk(logits[:, :-1], labels[:, 1:])
    total = logits.new_zeros(logits.shape[0], dtype=torch.float32)
    # torch.split writes all gradients in one pass; indexing would write one as long as the logits for each chunk.
    chunks = zip(logits[:, :-1].split(width, 1), labels[:, 1:].split(width, 1), strict=True)
    for chunk, targets in chunks:
        total = total + checkpoint(_chunk, chunk, targets, use_reentrant=False, preserve_rng_state=False)
    return total


def _chunk(logits: Tensor, labels: Tensor) -> Tensor:
    """(b,): summed losses of logits (b, s', v) against labels (b, s'), by rows of v: across them torch is slower."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).sum(1)


class _Blocks(Encoder):
    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.rest: list[int] = []

    def features(self) -> Features:
        """Blocks of tokens."""
        return Features({"input_ids": List(Value("int32"))})

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [text for text in rows["text"] if text]  # an empty line is not a document
        eos: Any = self.tokenizer.eos_token_id
        stream = self.rest
        for ids in self.tokenizer(texts, verbose=False)["input_ids"] if texts else []:
            stream.extend(ids)
            if not ids or ids[-1] != eos:
                stream.append(eos)
        end = len(stream) - len(stream) % self.max_length
        blocks = [stream[start : start + self.max_length] for start in range(0, end, self.max_length)]
        self.rest = stream[end:]
        return {"input_ids": blocks}

    def left_over(self) -> int:
        """Tokens of the last, incomplete block."""
        return len(self.rest)
