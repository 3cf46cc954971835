"""Several documents in one sample."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: documents, the longest first, each into the fullest bin that still has room for it.

    Returns the documents of each bin, bins and documents in the order in which they were taken; of equally long ones
    the first comes first. No length may exceed `capacity`. Johnson et al. 1974, doi:10.1137/0203025: at most 11/9 of
    the fewest bins, and a constant.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(room, (lengths[i], 0))
        if at < len(room):
            left, number = room.pop(at)
        else:
            left, number = capacity, len(bins)
            bins.append([])
        assert lengths[i] <= left, "longer than a bin"
        bins[number].append(i)
        if left > lengths[i]:
            insort(room, (left - lengths[i], number))
    return bins


def kept_apart(config: Any, ends: Any, length: int) -> dict[str, Any]:
    """What a model needs to be told of packed rows of `length` tokens whose documents end at `ends` (cu_seq_lens).

    Without a mask, eager and sdpa find the documents in position_ids, sliding windows included: nothing. Flash
    attention does so for one row only. `length` is an upper bound of the longest document, and known without waiting
    for the device.
    """
    if "flash" not in config._attn_implementation:
        return {}
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": length, "max_length_k": length}
