"""Importing large libraries in less time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Without Python's collector of cycles: what an import makes stays, and to look through it again and again takes a
    sixth of the time that torch, transformers and DeepSpeed need to load."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
