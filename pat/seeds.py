"""Seeds made of several whole numbers, such as the run's seed, the step and the rank.

The values are those of CPython's hash of a tuple, by which runs were seeded first. They are written out here, because
Python promises them neither for its next version nor for other interpreters, and a resumed run must draw what the
undisturbed one draws.
"""

from __future__ import annotations

_BITS = (1 << 64) - 1
_PRIME_1, _PRIME_2, _PRIME_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261  # xxHash's
_MERSENNE = (1 << 61) - 1


def mixed(*numbers: int) -> int:
    """A seed in [0, 2^63) that depends on all numbers and their order.

    xxHash64's rounds, one a number, modulo 2^64, x <<< b being x rotated to the left by b bits:

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
