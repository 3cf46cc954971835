"""Chunked losses on ranks. One start runs all checks, which are in chunk_checks.py."""

from __future__ import annotations

import pytest

from tests.distributed.chunk_checks import LAYOUTS, TAUGHT
from tests.distributed.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_chunked_is_plain_on_every_zero_stage() -> None:
    """Would catch: a head that is not gathered, or not reduced, or ranks that wait for others with more chunks.

    The gradient's norm of the first steps to fp32 rounding; the held-out loss after 12 steps of Adam, which takes the
    sign of what rounding left of small gradients, to 1 %.
    """
    said = run_ranks("tests.distributed.chunk_checks", 2)
    assert set(said) == {*LAYOUTS, *(f"{layout} with a teacher" for layout in TAUGHT)}
    for layout, (plain, chunked) in said.items():
        assert chunked[0] == pytest.approx(plain[0], rel=1e-4), layout
        assert chunked[2] == pytest.approx(plain[2], rel=1e-2), layout
    assert len({round(plain[2], 4) for plain, _ in said.values()}) > 1
