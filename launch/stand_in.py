"""A stand-in for the assets of the demo: a tiny encoder and made-up film reviews, for launch/decide.sh in a minute.

    PAT_ASSETS=DIR python launch/stand_in.py      writes DIR/minilm, DIR/reviews and DIR/mix.jsonl

A review is praise where its words of praise outnumber those of blame, which a few dozen steps learn. The figures say
nothing about pruning.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PRAISE = list[str]("good fine moving funny clever warm bright honest".split())
BLAME = list[str]("bad dull weak slow stale clumsy cold false".split())
OTHERS = list[str]("the a this film story plot cast scene ending score is was with and but very rather".split())
TRAIN, EVAL, MIX = 512, 200, 60


def reviews(number: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Half of them praise: three words of one kind and one of the other among others."""
    for index in range(number):
        label = index % 2
        told, other = (PRAISE, BLAME) if label else (BLAME, PRAISE)
        words = rng.choices(told, k=3) + rng.choices(other, k=1) + rng.choices(OTHERS, k=rng.randint(2, 8))
        rng.shuffle(words)
        yield {"text": " ".join(words), "label": label}


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *PRAISE, *BLAME, *OTHERS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)  # pyright: ignore
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=words, **{f"{key}_token": name for key, name in names.items()})


def write(root: Path) -> None:
    """All of it, the same at every call."""
    rng = random.Random(0)
    torch.manual_seed(0)
    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    encoder = BertModel(config)
    _tone(encoder, words)
    encoder.save_pretrained(root / "minilm")
    words.save_pretrained(root / "minilm")
    (root / "reviews").mkdir(exist_ok=True)
    for name, number in (("train", TRAIN), ("eval", EVAL)):
        _lines(root / "reviews" / f"{name}.jsonl", reviews(number, rng))
    description = "made-up film reviews, each praise (1) or blame (0): launch/stand_in.py"
    prompts = [
        {
            "prompt": row["text"],
            "slices": {"label": "praise" if row["label"] else "blame"},
            "checks": [{"name": "label", "label": str(row["label"])}],
        }
        for row in reviews(MIX, rng)
    ]
    _lines(root / "mix.jsonl", iter([{"mix": {"format": 1, "description": description}}, *prompts]))


def _tone(encoder: BertModel, words: PreTrainedTokenizerFast) -> None:
    """As if it were pretrained: words of praise have something in common, and words of blame its opposite."""
    vectors = encoder.embeddings.word_embeddings.weight.detach()
    tone = encoder.config.initializer_range * torch.randn(encoder.config.hidden_size)
    for kind, sign in ((PRAISE, 1.0), (BLAME, -1.0)):
        vectors[words.convert_tokens_to_ids(kind)] += sign * tone


def _lines(path: Path, rows: Iterator[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def main() -> int:
    """Write it to PAT_ASSETS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if not os.environ.get("PAT_ASSETS"):
        parser.error("PAT_ASSETS is not set: the folder to write to")
    write(Path(os.environ["PAT_ASSETS"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
