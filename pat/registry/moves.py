"""How an alias moves: announced, moved, then in the history; the next command finishes a move that a kill has stopped.

    pat.pending.ALIAS           a move that is being made
    pat.history.ALIAS.NUMBER    one that is done

An alias that was moved by something other than pat is noticed, and noted as such before it is moved again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pat.registry.backend import Backend, BackendError
from pat.registry.store import DamagedError

PENDING, HISTORY = "pat.pending", "pat.history"


@dataclass(frozen=True)
class Promotion:
    """One move of an alias."""

    number: int  # of the alias's moves, from 1 on
    alias: str
    kind: str  # promote, rollback, or outside: not by pat
    before: int | None  # version
    after: int | None
    who: str
    when_s: float  # since 1970
    reason: str
    gate: str  # none, or passed and the hash of its result


def past(backend: Backend, name: str, alias: str) -> tuple[list[Promotion], int | None]:
    """(the alias's moves, oldest first; what it stands for). A move that pat has not made is noted first."""
    moves = [each for each in history(backend.notes(name)) if each.alias == alias]
    now = backend.aliases(name).get(alias)
    known = moves[-1].after if moves else None
    if now != known:
        moved = Promotion(
            len(moves) + 1,
            alias,
            "outside",
            known,
            now,
            "unknown",
            time.time(),
            "moved by something other than pat",
            "none",
        )
        _note(backend, name, moved)
        moves.append(moved)
    return moves, now


def move(backend: Backend, name: str, promotion: Promotion) -> Promotion:
    """Move an alias. Raises BackendError; then it has not moved, or `finish` completes what is noted of it."""
    backend.note(name, f"{PENDING}.{promotion.alias}", _text(promotion))
    try:
        _complete(backend, name, promotion)
    except BackendError:  # a move that was reported as failed must not be completed later
        if promotion.before == promotion.after or backend.aliases(name).get(promotion.alias) != promotion.after:
            backend.note(name, f"{PENDING}.{promotion.alias}", None)
        raise
    return promotion


def finish(backend: Backend, name: str) -> list[Promotion]:
    """Complete moves that a kill or a full disk has stopped halfway; returns them. Dropped are those whose version was
    deleted since, or whose alias stands for a third one since, both outside of pat."""
    pending = [_read(text) for key, text in backend.notes(name).items() if key.startswith(f"{PENDING}.")]
    numbers = [entry.number for entry in backend.versions(name)] if pending else []
    aliases, done = (backend.aliases(name) if pending else {}), list[Promotion]()
    for promotion in pending:
        if promotion.after in numbers and aliases.get(promotion.alias) in (promotion.before, promotion.after):
            _complete(backend, name, promotion)
            done.append(promotion)
        else:
            backend.note(name, f"{PENDING}.{promotion.alias}", None)
    return done


def standing(moves: Sequence[Promotion]) -> list[int | None]:
    """What the alias stands for, after what a rollback would restore."""
    stack: list[int | None] = []
    for each in moves:
        if each.kind == "rollback":
            stack.pop()
        elif stack[-1:] != [each.after]:  # a promotion to where something else had moved it
            stack.append(each.after)
    return stack


def _complete(backend: Backend, name: str, promotion: Promotion) -> None:
    """Do all of a move but its announcement. Repeating it changes nothing."""
    assert promotion.after is not None
    backend.set_alias(name, promotion.alias, promotion.after)
    _note(backend, name, promotion)
    backend.note(name, f"{PENDING}.{promotion.alias}", None)


def history(notes: Mapping[str, str]) -> list[Promotion]:
    """All moves that are noted, by alias, oldest first."""
    found = [_read(text) for key, text in notes.items() if key.startswith(f"{HISTORY}.")]
    return sorted(found, key=lambda each: (each.alias, each.number))


def _note(backend: Backend, name: str, promotion: Promotion) -> None:
    backend.note(name, f"{HISTORY}.{promotion.alias}.{promotion.number:06d}", _text(promotion))


def _text(promotion: Promotion) -> str:
    return json.dumps(dataclasses.asdict(promotion), ensure_ascii=False)


def _read(text: str) -> Promotion:
    try:
        return Promotion(**json.loads(text))
    except (ValueError, TypeError):
        raise DamagedError(f"a note of the registry is not readable: {text[:80]!r}; restore its database") from None
