"""The parts of a report, before it is HTML or Markdown: a decision, key figures, and sections of blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Tone = Literal["good", "bad", "open"]

_NUMBER = re.compile(
    r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?(%|x|[kMG]?B|ms|s|M|points?))?( \([\d.e-]+ to [\d.e-]+\))?|[-<>] ?[\d.e-]*|"
)


@dataclass(frozen=True)
class Text:
    """A sentence or more."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Bullets:
    """Sentences in a list."""

    items: Sequence[str]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar[str] = "table"

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it is right-aligned: every cell is a number or empty."""
        return [i > 0 and all(_NUMBER.fullmatch(row[i]) for row in self.rows) for i in range(len(self.head))]


@dataclass(frozen=True)
class Picture:
    """An SVG, what it shows in a sentence, and its numbers."""

    name: str  # for ids, unique on the page
    title: str
    alt: str
    svg: str | None  # None: matplotlib is missing
    numbers: Table | None = None
    wide: bool = False
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Facts:
    """A block of names with their values, in two columns."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Code:
    """Lines for a shell, or of a file."""

    caption: str
    lines: Sequence[str]
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Prompt:
    """A prompt with both outputs."""

    name: str
    where: str  # slices, and how much worse
    prompt: str
    a: str
    b: str
    why: str


@dataclass(frozen=True)
class Prompts:
    """Regressive prompts, the worst first."""

    a: str  # the name of A
    b: str
    items: Sequence[Prompt]
    kind: ClassVar[str] = "prompts"


@dataclass(frozen=True)
class Heading:
    """Begins a part of a section."""

    text: str
    kind: ClassVar[str] = "heading"


Block = Text | Bullets | Table | Picture | Facts | Code | Prompts | Heading


@dataclass(frozen=True)
class Section:
    """A heading with blocks."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Card:
    """A key figure at the top of a page, with its label and perhaps a note."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether it is good enough, in a word and a sentence, and why."""

    tone: Tone
    word: str
    sentence: str
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """What a report says, before it is drawn as HTML or Markdown."""

    title: str
    what: str  # in a sentence
    decision: Decision
    cards: Sequence[Card] = ()
    sections: Sequence[Section] = field(default_factory=tuple)
    by: str = "pat report"  # the command that wrote it
