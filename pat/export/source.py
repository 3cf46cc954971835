"""The effective weights of a checkpoint as a stream, with their masks, counts and hashes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from pat.checkpoint.reader import CheckpointReader
from pat.common.hashing import MaskHash, WeightsHash
from pat.export.layout import Layout, View
from pat.export.masks import CHUNK, keep_chunk, masked
from pat.export.merged import MergedReader
from pat.export.narrowing import Narrowing
from pat.export.structures import Structures
from pat.export.writer import Spec
from pat.zero.checkpoint_files import CheckpointError


def weight_chunks(
    reader: CheckpointReader,
    name: str,
    start: int = 0,
    numel: int | None = None,  # None: all from start on
    frozen: Callable[[str], Tensor] | None = None,  # reads a frozen parameter whole; None: the reader
) -> Iterator[tuple[int, Tensor]]:
    """(start, (n,) fp32 effective weights) of a parameter, row-major. A frozen parameter is read whole first."""
    end = reader.numel(name) if numel is None else start + numel
    trainable = reader.parameters[name]["trainable"]
    whole = None if trainable else (frozen or reader.frozen)(name).reshape(-1)
    for first in range(start, end, CHUNK):
        n = min(CHUNK, end - first)
        yield first, reader.read("weight", name, first, n) if whole is None else whole[first : first + n].float()


class Parts:
    """The weights of the files' tensors, which may be parts of the checkpoint's, with the flags of a pruner's."""

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader = reader
        self._masked = set(masked(reader))
        self._frozen = lru_cache(2)(reader.frozen)  # the two of a layer's experts are asked for in turn

    def __call__(self, view: View, name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """((n,) fp32 effective weights, (n,) uint8 keep flags) of a view of the parameter `name`, row-major."""
        reader, prunable = self.reader, name in self._masked
        if not view.contiguous:
            shape = reader.parameters[name]["shape"]
            keep = view.of(keep_chunk(reader, name, 0, reader.numel(name)).view(shape)) if prunable else None
            yield view.of(reader.weight(name)).reshape(-1), None if keep is None else keep.reshape(-1)
            return
        frozen = None if view.whole else self._frozen
        for start, weight in weight_chunks(reader, name, view.offset, view.numel, frozen):
            yield weight, keep_chunk(reader, name, start, len(weight)) if prunable else None


def specs(reader: CheckpointReader, dtype: torch.dtype, cut: Narrowing | None = None) -> list[Spec]:
    """The tensors of the exported model: parameters in `dtype`, tied ones once, cut; persistent buffers as they are."""
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
    """Hands out every tensor of the files once, in the dtype that is written, and counts and hashes on the way.

    The hashes are of the whole model as it was trained, whatever is cut from it or merged: parameters must be asked for
    in name order, or, where `measures` says so, `measure` goes through all of them first.
    """

    reader: CheckpointReader
    structures: Structures = field(default_factory=Structures)
    layout: Layout = field(default_factory=Layout)
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
        self.measures = cut is not None or self._trained is not self.reader or bool(self.layout.views)
        self._parts = Parts(self.reader)

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
        cut, view = self.structures.cut, self.layout.view(spec)
        name = self.old.get(view.source, view.source)
        if name not in self.reader.parameters:
            yield view.of(self.reader.frozen(name)).reshape(-1)
        elif cut is not None:
            if name in self._masked:
                keep = keep_chunk(self.reader, name, 0, self.reader.numel(name))
                self._count(view.of(cut.select(name, keep.view(self.reader.parameters[name]["shape"]))))
            yield self._finite(spec, view.of(cut.cut(name, self.reader.weight(name))).reshape(-1))
        else:
            start = 0
            for weight, keep in self._parts(view, name):
                if not self.measures:
                    self._hash(name, start, weight)
                if keep is not None:
                    self._count(keep)
                yield self._finite(spec, weight)
                start += len(weight)

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
