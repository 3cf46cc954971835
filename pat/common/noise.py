"""Lines that libraries log although nothing is wrong."""

from __future__ import annotations

import re

_NOISE = re.compile(
    # DeepSpeed asks the linker for a library of NVMe offload.
    r"cannot find -l\w+|collect2: error: ld returned|skipping incompatible \S+ when searching for -l"
    r"|\[real_accelerator\.py|async_io|libaio|\[Gloo\] Rank \d+ is connected|Setting ds_accelerator to"
)


def telling(text: str, number: int) -> list[str]:
    """The last meaningful lines: not empty, and not logged in every healthy run."""
    lines = [line.rstrip() for line in text.splitlines()]
    return [line for line in lines if line and not _NOISE.search(line)][-number:]
