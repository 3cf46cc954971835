"""Seeds: mixes several numbers into one, the same on every machine; and seeds the generators."""

from __future__ import annotations

import random


def seed_everything(seed: int) -> None:
    """The same seed on every rank; code that must differ by rank mixes it in itself."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


_BITS = (1 << 64) - 1
_PRIME_1, _PRIME_2, _PRIME_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261  # xxHash's
_MERSENNE = (1 << 61) - 1


def mixed(*numbers: int) -> int:
    """A seed in [0, 2^63) that depends on all numbers and their order.

    xxHash64's rounds, one for each number, modulo 2^64, x <<< b being x rotated to the left by b bits:

        a_0 = P5,  a_i = ((a_(i-1) + x_i P2) <<< 31) P1,  a = a_n + (n xor P5 xor 3527539)

    x_i is the number modulo 2^61 - 1, with its sign (-1 counts as -2). The highest bit of a is left out.
    Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, Python's Objects/tupleobject.c.
    """
    a = _PRIME_5
    for number in numbers:
        a = (a + _lane(number) * _PRIME_2) & _BITS
        a = (a << 31 | a >> 33) & _BITS
        a = a * _PRIME_1 & _BITS
    a = (a + (len(numbers) ^ _PRIME_5 ^ 3527539)) & _BITS
    return (1546275796 if a == _BITS else a) & _BITS >> 1


def _lane(number: int) -> int:
    x = abs(number) % _MERSENNE
    return x if number >= 0 else -2 if x == 1 else -x
