"""The effective weights of a checkpoint as a stream, with their masks, counts and hashes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pat.checkpoint_reader import CheckpointError, CheckpointReader
from pat.export.masks import CHUNK, keep_chunk, masked
from pat.export.writer import Spec
from pat.hashing import MaskHash, WeightsHash


def weight_chunks(reader: CheckpointReader, name: str) -> Iterator[tuple[int, Tensor]]:
    """(start, (n,) fp32 effective weights) of a parameter, row-major. A frozen parameter is read whole first."""
    numel = reader.numel(name)
    trainable = reader.parameters[name]["trainable"]
    whole = None if trainable else reader.frozen(name).reshape(-1)
    for start in range(0, numel, CHUNK):
        n = min(CHUNK, numel - start)
        yield start, reader.read("weight", name, start, n) if whole is None else whole[start : start + n].float()


def specs(reader: CheckpointReader, dtype: torch.dtype) -> list[Spec]:
    """What a model folder holds: parameters in `dtype`, tied ones once, and persistent buffers as they are."""
    parameters = [Spec(name, tuple(p["shape"]), dtype) for name, p in reader.parameters.items()]
    values = {name: reader.frozen(name) for name in reader.buffers()}
    return parameters + [Spec(name, tuple(value.shape), value.dtype) for name, value in values.items()]


@dataclass
class Stream:
    """Hands out every tensor once, in the dtype that is written, and counts and hashes on the way.

    Parameters must be asked for in name order (the hashes' order).
    """

    reader: CheckpointReader
    nonzero: int = 0  # weights other than 0, over all parameters, as written
    pruned: int = 0  # flags that are 0
    prunable: int = 0
    masks: MaskHash = field(default_factory=MaskHash)
    weights: WeightsHash = field(default_factory=WeightsHash)

    def __post_init__(self) -> None:
        """Parameters of a pruner count as prunable, masked yet or not."""
        self._masked = set(masked(self.reader))
        self.prunable = sum(map(self.reader.numel, self._masked))

    @property
    def total(self) -> int:
        """Parameters, tied ones once."""
        return sum(math.prod(p["shape"]) for p in self.reader.parameters.values())

    @property
    def mask_sha256(self) -> str | None:
        """Of the flags seen so far; None for a run without pruners."""
        return self.masks.hexdigest() if self._masked else None

    def __call__(self, spec: Spec) -> Iterator[Tensor]:
        """The (n,) chunks of a tensor."""
        if spec.name not in self.reader.parameters:
            yield self.reader.frozen(spec.name)
            return
        for start, weight in weight_chunks(self.reader, spec.name):
            self.weights.update(spec.name, weight)
            if spec.name in self._masked:
                keep = keep_chunk(self.reader, spec.name, start, len(weight))
                self._check(spec.name, weight, keep)
                self.masks.update(spec.name, keep)
            written = weight.to(spec.dtype)
            if not torch.isfinite(written).all():
                reason = f"{spec.name} has values that are not finite in {spec.dtype}"
                raise CheckpointError(f"{reason}: export to bf16 or fp32, or export an older checkpoint")
            self.nonzero += int(torch.count_nonzero(written))
            yield written

    def _check(self, name: str, weight: Tensor, keep: Tensor) -> None:
        dead = keep == 0
        self.pruned += int(torch.count_nonzero(dead))
        alive = int(torch.count_nonzero(weight[dead]))
        if alive:
            raise CheckpointError(f"{alive} pruned weights of {name} are not zero; export another checkpoint.")
