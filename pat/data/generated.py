"""Pseudo-text with enough structure that a small model learns it quickly: for checks without a download."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from pat.schema import GeneratedConfig

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
FOLLOWERS = 3  # words that may come after a word
MIXED = 0.2  # fraction of words that do not depend on the document's class


def generate(cfg: GeneratedConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Documents {"text", "label"}: sentences from a Markov chain over invented words, one chain for each class.

    Each word has FOLLOWERS successors, of probability 4/7, 2/7 and 1/7: 1.4 bits a word once the chain is known.
    """
    draw = random.Random(seed).random  # the one method whose values Python promises not to change
    words = _words(cfg.num_words, draw)
    # One chain per class, and a last one that all classes share.
    chains = [[[int(draw() * len(words)) for _ in range(FOLLOWERS)] for _ in words] for _ in range(cfg.num_classes + 1)]
    for document in range(cfg.num_documents):
        label = document % cfg.num_classes
        sentences = []
        for _ in range(cfg.sentences_per_document):
            word = int(draw() * len(words))
            sentence = [words[word]]
            for _ in range(4 + int(draw() * 6)):
                chain = chains[-1 if draw() < MIXED else label]
                word = chain[word][_successor(draw())]
                sentence.append(words[word])
            sentences.append(" ".join(sentence).capitalize() + ".")
        yield {"text": " ".join(sentences), "label": label}


def _successor(x: float) -> int:
    return 0 if x < 4 / 7 else 1 if x < 6 / 7 else 2


def _words(count: int, draw: Any) -> list[str]:
    """Distinct words of two or three syllables."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = 2 + int(draw() * 2)
        letters = [part[int(draw() * len(part))] for _ in range(syllables) for part in (CONSONANTS, VOWELS)]
        words["".join(letters)] = None
    return list(words)
