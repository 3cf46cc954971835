"""Padding of a batch that the model itself is not told of.

Packed documents are kept apart by their positions, and an attention mask would undo that. Who takes the mask away says
here where the padding is, for those who count tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_untold: ContextVar[Tensor | None] = ContextVar("untold", default=None)


@contextmanager
def untold(mask: Tensor) -> Iterator[None]:
    """Inside it the forward is of a batch with this mask, (B, T), 0 = padding, and the model does not get it."""
    before = _untold.set(mask)
    try:
        yield
    finally:
        _untold.reset(before)


def current() -> Tensor | None:
    """The mask of the batch whose forward runs; None: there is none that the model does not get."""
    return _untold.get()
