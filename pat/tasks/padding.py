"""Padding of a batch that is hidden from the model itself.

Packed documents are kept apart by their positions, and an attention mask would undo that. Code that withholds
the mask records the padding here, for code that counts tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_withheld: ContextVar[Tensor | None] = ContextVar("withheld", default=None)


@contextmanager
def withheld(mask: Tensor) -> Iterator[None]:
    """Inside it the forward is of a batch with this mask, (B, T), 0 = padding, and the model does not get it."""
    before = _withheld.set(mask)
    try:
        yield
    finally:
        _withheld.reset(before)


def current() -> Tensor | None:
    """The mask of the batch whose forward runs; None: there is none that the model does not get."""
    return _withheld.get()
