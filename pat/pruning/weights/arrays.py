"""Boolean arithmetic on flat tensors: numpy on the CPU, torch elsewhere.

Torch's comparisons into bool and its masked selection are scalar loops on the CPU, several times slower than numpy's.
The functions that are used here have the same names and arguments in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

CPU_CHUNK = 1 << 17  # elements: a chunk of fp32 and two of flags stay in a core's second-level cache
MAX_CHUNK = 1 << 24  # elements: enough to fill an accelerator


def module(tensor: Tensor) -> Any:
    """Numpy or torch: whichever `array(tensor)` belongs to."""
    return np if tensor.device.type == "cpu" else torch


def array(tensor: Tensor) -> Any:
    """The same memory, for `module(tensor)`."""
    return tensor.detach().numpy() if module(tensor) is np else tensor.detach()


def chunk_numel(tensor: Tensor) -> int:
    """Elements of a flat tensor to treat at once."""
    return CPU_CHUNK if module(tensor) is np else min(max(CPU_CHUNK, tensor.numel() // 32), MAX_CHUNK)


def chunks(tensor: Tensor) -> Iterator[slice]:
    """Slices that cover a flat tensor."""
    step = chunk_numel(tensor)
    for begin in range(0, tensor.numel(), step):
        yield slice(begin, min(begin + step, tensor.numel()))
