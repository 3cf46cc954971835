"""The budget that counts bytes, of weights and of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pat.models.anatomy import Anatomy
from pat.pruning.budgets import StructureBudget
from pat.pruning.structures.costs import Cost, memory


@dataclass(frozen=True)
class Memory(StructureBudget):
    """Fraction of the bytes that serving holds: all parameters, and the KV cache of `batch` sequences of `context`.

        value_bytes * (parameters + 2 batch * sum over KV heads of d min(context, window))

    d is the head dimension and window the positions that a layer attends to, where it has one; an encoder has no cache.
    context 0: the bytes on disk. Activations and buffers are not counted.
    """

    name: str = "memory"
    context: int = field(kw_only=True)  # length of the sequences in the KV cache, in tokens
    batch: int = field(default=1, kw_only=True)  # sequences in the KV cache
    value_bytes: int = field(default=2, kw_only=True)  # bytes of a weight and of a cached value: 2 in bf16

    unit: ClassVar[str] = "bytes"

    def __post_init__(self) -> None:
        """Refuse what has no size."""
        super().__post_init__()
        for name, least in (("context", 0), ("batch", 1), ("value_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"budget.{name} is {getattr(self, name)}, but must be at least {least}.")

    def cost(self, anatomy: Anatomy) -> Cost:
        """Bytes."""
        return memory(anatomy, self.context, self.batch, self.value_bytes)
