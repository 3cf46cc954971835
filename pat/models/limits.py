"""What a model has room for: tokens of a vocabulary, positions of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyarrow.compute as pc
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import LARGE_INTEGER

# Model types whose first token has position pad_token_id + 1: 514 positions hold 512 tokens.
AFTER_PAD = (
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def positions(config: PretrainedConfig) -> int | None:
    """Tokens of the longest sequence; None where there is no limit."""
    text: Any = config.get_text_config()
    count = getattr(text, "max_position_embeddings", None)
    if count is None or count < 1:  # XLNet says -1
        return None
    if text.model_type not in AFTER_PAD:
        return count
    return max(0, count - (text.pad_token_id or 0) - 1)


def cut(positions: int | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Options of a tokenizer's call that cut a text to these positions and to what the tokenizer knows, if to any."""
    known = [count for count in (positions, tokenizer.model_max_length) if count and count < LARGE_INTEGER]
    return {"truncation": True, "max_length": min(known)} if known else {}


def check(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    samples: Sequence[Dataset] = (),  # that the model will see
) -> None:
    """The model must have the tokenizer's ids and `data.max_length` positions, else ValueError. Tokens that were added
    to the tokenizer and are in no sample need not be the model's: text models of Gemma 3 have no row for its image."""
    text: Any = config.get_text_config()
    vocab, limit = getattr(text, "vocab_size", None), positions(config)
    if vocab is not None and len(tokenizer) > vocab and not _unused(tokenizer, vocab, samples):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the model embeds {vocab}: use the model's own tokenizer, "
            "or with random weights a larger model.config.vocab_size."
        )
    if limit is not None and max_length > limit:
        after = f" (they begin after pad_token_id={text.pad_token_id})" if text.model_type in AFTER_PAD else ""
        raise ValueError(
            f"data.max_length={max_length} is more than the {limit} positions of the model{after}: lower it."
        )


def _unused(tokenizer: PreTrainedTokenizerBase, vocab: int, samples: Sequence[Dataset]) -> bool:
    """Whether all tokens from the id `vocab` on were added, pad nothing, and are in no sample."""
    beyond, pad = range(vocab, len(tokenizer)), cast(int | None, tokenizer.pad_token_id)
    if not set(beyond) <= tokenizer.added_tokens_decoder.keys() or (pad or 0) >= vocab:
        return False
    return all(_largest_id(each) < vocab for each in samples)


def _largest_id(samples: Dataset) -> int:
    """Of all tokens; -1 where there are none."""
    batches: Any = samples.select_columns("input_ids").with_format("arrow").iter(1000)
    found = (pc.max(pc.list_flatten(batch["input_ids"])).as_py() for batch in batches)  # pyright: ignore
    return max((largest for largest in found if largest is not None), default=-1)


def cap(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Tell the tokenizer of the model's positions: batches are padded up to what it knows."""
    if limit := positions(config):
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
