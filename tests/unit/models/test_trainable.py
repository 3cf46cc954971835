"""Which parameters train."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pat.models.trainable import freeze
from tests import models


@pytest.mark.parametrize(
    ("family", "auto", "fields", "expected"),
    [
        ("llama", AutoModelForCausalLM, {"tie_word_embeddings": True}, {"model.embed_tokens.weight"}),
        (
            "llama", AutoModelForCausalLM, {"tie_word_embeddings": False},
            {"model.embed_tokens.weight", "lm_head.weight"},
        ),
        ("gpt2", AutoModelForCausalLM, {}, {"transformer.wte.weight", "transformer.wpe.weight"}),
        (
            "bert", AutoModelForSequenceClassification, {},
            {f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")},
        ),
    ],
    ids=["tied", "two matrices", "positions", "a classifier"],
)  # fmt: skip
def test_all_but_embeddings(family: str, auto: object, fields: dict[str, Any], expected: set[str]) -> None:
    """The norm after BERT's tables trains, and so does a classification head; a pattern may take a table back in."""
    model = models.model(family, auto=auto, **fields)
    freeze(model, ["all-but-embeddings"])
    assert {name for name, param in model.named_parameters() if not param.requires_grad} == expected
    one = sorted(expected)[0]
    freeze(model, ["all-but-embeddings", one])
    assert {name for name, param in model.named_parameters() if not param.requires_grad} == expected - {one}
