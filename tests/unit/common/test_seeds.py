"""Seeds are the values that runs have had from the start, whatever Python makes of hash()."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pat.common.seeds import mixed

KNOWN = {
    (0, 0, 0, 0): 5997146865798422254,
    (7, 123, 1, 3): 6473972180648562418,
    (1 << 33, 10**6, 15, 1023): 8904191293102318323,
    (-1, 2): 9015095445802598011,
    (): 5740354900026072187,
}
cpython = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info >= (3, 14) or sys.maxsize < 1 << 62,
    reason="this Python may hash tuples in another way",
)


@pytest.mark.parametrize("numbers", KNOWN)
def test_known_values(numbers: tuple[int, ...]) -> None:
    assert mixed(*numbers) == KNOWN[numbers]


@cpython
def test_as_cpythons_hash_of_what_a_run_seeds_with() -> None:
    draw = random.Random(0)
    for _ in range(20_000):
        numbers = (draw.randrange(2**34), draw.randrange(10**6), draw.randrange(64), draw.randrange(1024))
        assert mixed(*numbers) == hash(numbers) & 0x7FFF_FFFF_FFFF_FFFF


@cpython
@given(st.lists(st.integers() | st.integers(-(2**65), 2**65), max_size=6))
def test_as_cpythons_hash_of_any_whole_numbers(numbers: list[int]) -> None:
    assert mixed(*numbers) == hash(tuple(numbers)) & 0x7FFF_FFFF_FFFF_FFFF


@cpython
def test_edges_of_the_modulus() -> None:
    edges = [sign * ((1 << 61) - 1) * k + d for sign in (1, -1) for k in (0, 1, 2) for d in (-2, -1, 0, 1, 2)]
    for a in edges:
        for b in edges:
            assert mixed(a, b) == hash((a, b)) & 0x7FFF_FFFF_FFFF_FFFF
