"""Spans of words, such as names of persons, in the tags of the words: IOB1, IOB2, IOBES and BILOU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

OUTSIDE = "O"
ALIASES = {"L": "E", "U": "S"}  # BILOU's last and unit
Span = tuple[int, int, int]  # first word, last word, number of the kind


@dataclass(frozen=True)
class Tags:
    """What the tags of a data set mean, in the order of their numbers."""

    kinds: tuple[str, ...]  # of spans, such as PER
    prefixes: tuple[str, ...]  # of each tag: B, I, E, S; O outside of spans
    numbers: tuple[int, ...]  # of each tag's kind; -1 outside

    def spans(self, tags: Sequence[int]) -> set[Span]:
        """A word goes on with the span of the word before if that is B or I, it is I or E, and their kinds are the
        same; else it begins one, whatever its prefix. As the script of the CoNLL shared tasks counts, conlleval (Tjong
        Kim Sang & De Meulder 2003, arXiv:cs/0306050)."""
        found, first = set[Span](), 0
        for word, tag in enumerate(tags):
            if word and not self._goes_on(tags[word - 1], tag):
                found.add((first, word - 1, self.numbers[tags[word - 1]]))
                first = word
        if tags:
            found.add((first, len(tags) - 1, self.numbers[tags[-1]]))
        return {span for span in found if span[2] >= 0}

    def _goes_on(self, before: int, tag: int) -> bool:
        together = self.numbers[before] == self.numbers[tag]
        return together and self.prefixes[before] in "BI" and self.prefixes[tag] in "IE"


@cache
def tags_of(names: tuple[str, ...]) -> Tags:
    """By their names: O, and B-PER, I-PER, ... Where other names have no such prefix, each word whose tag is not O is a
    span of its own, as for parts of speech."""
    parts = [re.fullmatch(r"([BIESLU])-(.+)", name) for name in names if name != OUTSIDE]
    if not all(parts):
        split = {name: ("S", name) for name in names if name != OUTSIDE}
    else:
        split = {part[0]: (ALIASES.get(part[1], part[1]), part[2]) for part in parts if part}
    kinds = tuple(sorted({kind for _, kind in split.values()}))
    numbers = tuple(kinds.index(split[name][1]) if name in split else -1 for name in names)
    return Tags(kinds, tuple(split[name][0] if name in split else OUTSIDE for name in names), numbers)
