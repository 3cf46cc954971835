"""The effective weights of a checkpoint as a stream, with their masks, counts and hashes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pat.checkpoint.reader import CheckpointReader
from pat.common.hashing import MaskHash, WeightsHash
from pat.export.masks import CHUNK, keep_chunk, masked
from pat.export.merged import MergedReader
from pat.export.narrowing import Narrowing
from pat.export.structures import Structures
from pat.export.writer import Spec
from pat.zero.checkpoint_files import CheckpointError


def weight_chunks(reader: CheckpointReader, name: str) -> Iterator[tuple[int, Tensor]]:
    """(start, (n,) fp32 effective weights) of a parameter, row-major. A frozen parameter is read whole first."""
    numel = reader.numel(name)
    trainable = reader.parameters[name]["trainable"]
    whole = None if trainable else reader.frozen(name).reshape(-1)
    for start in range(0, numel, CHUNK):
        n = min(CHUNK, numel - start)
        yield start, reader.read("weight", name, start, n) if whole is None else whole[start : start + n].float()


def specs(reader: CheckpointReader, dtype: torch.dtype, cut: Narrowing | None = None) -> list[Spec]:
    """What a model folder holds: parameters in `dtype`, tied ones once, cut, and persistent buffers as they are."""
    parameters = []
    for name, parameter in reader.parameters.items():
        new = name if cut is None else cut.rename(name)
        if new is not None:
            shape = parameter["shape"] if cut is None else cut.shapes[new]
            parameters.append(Spec(new, tuple(shape), dtype))
    values = {name: reader.frozen(name) for name in reader.buffers()}
    return parameters + [Spec(name, tuple(value.shape), value.dtype) for name, value in values.items()]


@dataclass
class Stream:
    """Hands out every tensor once, in the dtype that is written, and counts and hashes on the way.

    The hashes are of the whole model as it was trained, whatever is cut from it or merged: parameters must be asked for
    in name order, or, where `measures` says so, `measure` goes through all of them first.
    """

    reader: CheckpointReader
    structures: Structures = field(default_factory=Structures)
    nonzero: int = 0  # weights other than 0, over all parameters, as written
    written: int = 0  # parameters, as written
    pruned: int = 0  # the parameters of units that are gone, and the flags that are 0 in what is left
    prunable: int = 0
    mask_hash: MaskHash = field(default_factory=MaskHash)
    weights: WeightsHash = field(default_factory=WeightsHash)

    def __post_init__(self) -> None:
        """Parameters of a pruner count as prunable, masked yet or not."""
        self._masked = set(masked(self.reader))
        own = self._masked - self.structures.parameters
        self.prunable = sum(map(self.reader.numel, own)) + self.structures.prunable
        self.pruned = self.structures.pruned
        cut = self.structures.cut
        self.old = {} if cut is None else {cut.rename(name): name for name in self.reader.parameters}

        self._trained = self.reader.trained if isinstance(self.reader, MergedReader) else self.reader
        self.measures = cut is not None or self._trained is not self.reader

    @property
    def total(self) -> int:
        """Parameters of the whole model, tied ones once."""
        return sum(math.prod(p["shape"]) for p in self.reader.parameters.values())

    @property
    def mask_sha256(self) -> str | None:
        """Of the flags seen so far; None for a run without pruners."""
        return self.mask_hash.hexdigest() if self._masked or self.structures.pruners else None

    def measure(self) -> Iterator[int]:
        """Hash the whole model, chunk by chunk; yields the elements done."""
        flags = self.structures.flags
        for name in sorted([*self._trained.parameters, *flags]):
            if name in flags:
                self.mask_hash.update(name, flags[name])
                continue
            for start, weight in weight_chunks(self._trained, name):
                self._hash(name, start, weight)
                yield len(weight)

    def __call__(self, spec: Spec) -> Iterator[Tensor]:
        """The (n,) chunks of a tensor."""
        cut = self.structures.cut
        if self.old.get(spec.name, spec.name) not in self.reader.parameters:
            yield self.reader.frozen(spec.name)
        elif cut is not None:
            old = self.old[spec.name]
            if old in self._masked:
                keep = keep_chunk(self.reader, old, 0, self.reader.numel(old))
                self._count(cut.select(old, keep.view(self.reader.parameters[old]["shape"])))
            yield self._finite(spec, cut.cut(old, self.reader.weight(old)).reshape(-1))
        else:
            for start, weight in weight_chunks(self.reader, spec.name):
                if not self.measures:
                    self._hash(spec.name, start, weight)
                if spec.name in self._masked:
                    self._count(keep_chunk(self.reader, spec.name, start, len(weight)))
                yield self._finite(spec, weight)

    def _hash(self, name: str, start: int, weight: Tensor) -> None:
        self.weights.update(name, weight)
        if name in self._masked:
            keep = keep_chunk(self.reader, name, start, len(weight))
            self._check(name, weight, keep)
            self.mask_hash.update(name, keep)

    def _finite(self, spec: Spec, weight: Tensor) -> Tensor:
        written = weight.to(spec.dtype)
        if not torch.isfinite(written).all():
            reason = f"{spec.name} has values that are not finite in {spec.dtype}"
            raise CheckpointError(f"{reason}: export to bf16 or fp32, or export an older checkpoint")
        self.nonzero += int(torch.count_nonzero(written))
        self.written += len(written)
        return written

    def _count(self, keep: Tensor) -> None:
        self.pruned += keep.numel() - int(torch.count_nonzero(keep))

    def _check(self, name: str, weight: Tensor, keep: Tensor) -> None:
        alive = int(torch.count_nonzero(weight[keep == 0]))
        if alive:
            raise CheckpointError(f"{alive} pruned weights of {name} are not zero; export another checkpoint.")
