"""A page as Markdown: the same content without pictures, whose numbers stand in tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pat.common import secrets
from pat.common.text import plain
from pat.report.page import Block, Bullets, Code, Facts, Heading, Page, Picture, Prompts, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]|~#!$])")


def markdown(page: Page) -> str:
    """The whole page as Markdown text, the decision first; of a picture its description and its numbers."""
    decision = page.decision
    parts = [f"# {text(page.title)}", text(page.what), f"**{text(decision.word)}.** {text(decision.sentence)}"]
    if decision.reasons:
        parts.append(_list(decision.reasons))
    if page.cards:
        rows = [(card.label, card.value, card.note) for card in page.cards]
        parts.append(_table(("figure", "value", ""), rows))
    for section in page.sections:
        parts.append(f"## {text(section.title)}")
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(parts) + "\n"


def text(value: str) -> str:
    """In a line: no keys, no control characters, no HTML, nothing that Markdown would take for its own."""
    value = plain(secrets.hide(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(_SPECIAL.sub(r"\\\1", value).split())


def fenced(value: str, language: str = "") -> str:
    """As it is, between fences longer than any in it."""
    value = plain(secrets.hide(value))
    fence = "`" * max(3, 1 + max((len(found) for found in re.findall("`+", value)), default=0))
    return f"{fence}{language}\n{value}\n{fence}"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"### {text(block.text)}"
        case Bullets():
            yield _list(block.items)
        case Table():
            yield f"{text(block.caption)}:"
            yield _table(block.head, block.rows)
        case Picture():
            yield text(block.alt)
            if block.numbers is not None:
                yield _table(block.numbers.head, block.numbers.rows)
        case Facts():
            yield _table(("", ""), block.rows)
        case Code():
            yield f"{text(block.caption)}:"
            yield fenced("\n".join(block.lines), "sh")
        case Prompts():
            for item in block.items:
                yield f"**{text(item.name) or 'prompt'}** {text(item.where)}"
                yield fenced(item.prompt)
                yield from (f"{part}:\n\n{fenced(said)}" for part, said in (("A", item.a), ("B", item.b)))
                if item.why:
                    yield f"Why: {text(item.why)}"
        case _:
            yield text(block.text)


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {text(item)}" for item in items)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[text(cell) for cell in row] for row in [head, *rows]]
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
