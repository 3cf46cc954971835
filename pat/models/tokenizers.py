"""Tokenizers: from the hub, from a folder, or the 256 bytes."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pat.models import limits
from pat.models.build import config_of
from pat.models.names import require_reachable, to_fetch
from pat.schema import ModelConfig

log = logging.getLogger(__name__)

BYTE = "byte"


def build_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that `model.tokenizer` (else `model.path`) names, which knows the model's positions and how to pad.

    ValueError where there is none.
    """
    tokenizer = _named(cfg)
    config = config_of(cfg, tokenizer)
    if config is not None:
        limits.cap(tokenizer, config)
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token b is byte b of the UTF-8 text, 0 <= b < 256; 256 pads, 257 begins a text, 258 ends it."""
    characters = _byte_characters()
    model = models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    # split_special_tokens: a text that spells "<eos>" is five bytes like any other.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that decides the ids of a text or a chat, regardless of the tokenizer's earlier use."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: dict[str, Any] = {"vocab": tokenizer.get_vocab()}
    else:
        content = json.loads(backend.to_str())
        # The last call leaves its truncation and padding behind.
        content.pop("truncation", None)
        content.pop("padding", None)
    content["class"] = type(tokenizer).__name__
    content["special"] = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    content["split_special_tokens"] = bool(getattr(tokenizer, "split_special_tokens", False))
    if tokenizer.truncation_side != "right":
        content["truncation_side"] = tokenizer.truncation_side
    if tokenizer.chat_template:
        content["chat_template"] = tokenizer.chat_template
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _named(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    name = cfg.tokenizer or cfg.path
    if name is None:
        raise ValueError(
            f"model.tokenizer is not set, and there is no model.path to take it from: give one, or '{BYTE}'."
        )
    if name == BYTE:
        return byte_tokenizer()
    require_reachable(name, "model.tokenizer" if cfg.tokenizer else "model.path")
    revision = cfg.revision if name == cfg.path else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"No tokenizer could be loaded from '{name}' (misspelt, offline, a folder without tokenizer files, or one "
            "with code of its own, which is not run?): set model.tokenizer to a hub name, a folder or 'byte'."
            + to_fetch(name)
        ) from error
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):  # transformers returns it without a file
        raise ValueError(
            f"'{name}' holds no tokenizer (tokenizer.json, or a vocabulary): set model.tokenizer to a hub name, a "
            f"folder or '{BYTE}'."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer '{name}' has neither a pad nor an end-of-text token: add one to its files."
            )
        tokenizer.pad_token = tokenizer.eos_token
        log.info("the tokenizer has no pad token: its end-of-text token %s pads", tokenizer.eos_token)
    return tokenizer


def _byte_characters() -> dict[int, str]:
    """The printable character by which byte-level BPE writes each byte, as in GPT-2's encoder.py."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
