"""What every layout shares: shards, the segments in them, and whole parameters put together from all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from pat.common.comm import LOCAL, Comm
from pat.common.parameters import logical_numel, logical_shape

CHUNK = 1 << 24  # elements per message when a parameter is streamed over the ranks


@dataclass(frozen=True)
class Segment:
    """A contiguous run of one parameter's elements inside one flat fp32 shard of this rank."""

    name: str  # parameter
    shape: tuple[int, ...]  # logical shape of the whole parameter
    start: int  # first element: row-major index in the parameter
    numel: int
    shard: int  # index of the flat shard on this rank
    offset: int  # first element: index in the flat shard

    @property
    def part(self) -> slice:
        """Its elements in the flat shard."""
        return slice(self.offset, self.offset + self.numel)


@dataclass(frozen=True)
class Shard:
    """A flat fp32 tensor that the base optimizer steps."""

    index: int
    group: int  # param group of the base optimizer
    flat: Tensor  # (n,) fp32; at ZeRO 0 it may have a parameter's shape, so read it through `view`
    segments: tuple[Segment, ...]

    @property
    def view(self) -> Tensor:
        """The shard as a vector."""
        return self.flat.data.view(-1)


Held = tuple[Any, int, int, int]  # (parameter, first element in it, numel, offset in the shard)


@dataclass(frozen=True)
class Piece:
    """Some elements of a parameter or shard, and the index of the first of them in it."""

    start: int
    data: Tensor  # (n,)


class ZeroLayout(ABC):
    """This rank's shards of one DeepSpeed engine, and what may be done to them from outside."""

    name: ClassVar[str]  # in manifests
    replicated: ClassVar[bool] = False  # every rank holds every shard whole
    partitioned: ClassVar[bool] = False  # the forward's parameters are cut over the ranks, too

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.zero = engine.optimizer  # DeepSpeed's wrapper, or the base optimizer itself at ZeRO 0 in fp32
        self.base: torch.optim.Optimizer = engine.basic_optimizer
        self.device = engine.device
        self.world = Comm(dist.get_rank(), dist.get_world_size(), torch.device(engine.device))
        self.comm = LOCAL if self.replicated else self.world  # over which sums of all shards are taken
        self.parameters: dict[str, Any] = dict(engine.module.named_parameters())  # frozen ones too, tied weights once
        self._names = {id(p): n for n, p in self.parameters.items()}
        self.shards = list(self._find_shards())
        self._places: dict[str, list[tuple[Shard, Segment]]] = {}
        for shard in self.shards:
            for segment in shard.segments:
                self._places.setdefault(segment.name, []).append((shard, segment))

    @abstractmethod
    def _find_shards(self) -> Iterator[Shard]:
        """This rank's shards, in the order of their indices."""

    def _segments(self, shard: int, contents: Iterable[Held]) -> tuple[Segment, ...]:
        """What a shard holds as segments, in shard order; without those that have no elements."""
        segments = [
            Segment(self._names[id(param)], logical_shape(param), start, numel, shard, offset)
            for param, start, numel, offset in contents
            if numel
        ]
        return tuple(sorted(segments, key=lambda s: s.offset))

    def group_of(self, shard: Shard) -> dict[str, Any]:
        """The base optimizer's param group of a shard."""
        return self.base.param_groups[shard.group]

    # -- gradients -------------------------------------------------------------------------------------------------

    def pending_gradients(self, shard: Shard) -> Iterator[Piece]:
        """The reduced gradient that waits for the coming step, still multiplied by the loss scale."""
        if shard.flat.grad is not None:
            yield Piece(0, shard.flat.grad.view(-1))

    @property
    def loss_scale(self) -> float:
        """What the pending gradients are multiplied by: 1 but for fp16."""
        return float(getattr(self.zero, "loss_scale", 1.0) or 1.0) if self.engine.fp16_enabled() else 1.0

    @abstractmethod
    def replace_norm(self, norm: Callable[[], Tensor], finite: Callable[[], bool]) -> None:
        """Let DeepSpeed clip by `norm()` (a 0-dim fp32 tensor, of the still scaled gradients) instead of its own.

        Collective inside `norm`: DeepSpeed calls it on every rank, once per step, before any hook. A step whose norm
        is infinite is skipped: ZeRO 1 to 3 look at the norm, ZeRO 0 in low precision asks `finite()`.
        """

    def clip_before_step(self, norm: Callable[[], Tensor], max_norm: float) -> bool:
        """Clip where DeepSpeed does not: False if the norm is not finite and the gradients are dropped. Collective."""
        return True

    # -- after a change of the fp32 shards outside a step ----------------------------------------------------------

    @abstractmethod
    def refresh_forward(self) -> None:
        """Cast the fp32 shards into the forward copies and gather them. Collective."""

    def forward_segment(self, segment: Segment) -> Tensor:
        """(n,) the forward copy of a segment, for checking it."""
        return self.parameters[segment.name].data.view(-1)[segment.start : segment.start + segment.numel]

    def fill_frozen(self, name: str, whole: Tensor) -> None:
        """Set a frozen parameter, which is in no shard, from all of its elements."""
        self.parameters[name].data.view(-1).copy_(whole.reshape(-1))

    # -- whole parameters, one at a time ---------------------------------------------------------------------------

    def pieces(self, name: str) -> list[Piece]:
        """This rank's fp32 pieces of a parameter's effective weight; each element comes from one rank only."""
        if self.replicated and self.world.rank != 0:
            return []
        owned = [Piece(s.start, shard.view[s.part]) for shard, s in self._places.get(name, ())]
        param = self.parameters[name]
        return owned if owned or param.requires_grad else self._frozen_pieces(param)

    def _frozen_pieces(self, param: Any) -> list[Piece]:
        return [Piece(0, param.data.view(-1))] if self.world.rank == 0 else []

    def assemble(self, name: str, pieces: list[Piece], dtype: torch.dtype, run: range | None = None) -> Tensor:
        """(n,) the elements of a parameter in this run, or all, on every rank, from all ranks' pieces. Collective."""
        run = range(logical_numel(self.parameters[name])) if run is None else run
        full = torch.zeros(len(run), dtype=dtype, device=self.device)
        for piece in pieces:
            copy_common(piece.data, piece.start, full, run.start)
        for start in range(0, len(run), CHUNK):
            self.world.sum_(full[start : start + CHUNK])
        return full

    def whole(self, name: str) -> Tensor:
        """A parameter's effective weight in its logical shape, fp32, on every rank. Collective."""
        return self.part(name, None).view(logical_shape(self.parameters[name]))

    def narrow(self, name: str, dtype: torch.dtype) -> Tensor:
        """`whole` in another dtype, without the whole in fp32. Collective."""
        if dtype == torch.float32:
            return self.whole(name)
        param, pieces = self.parameters[name], self.pieces(name)
        full = torch.empty(logical_numel(param), dtype=dtype, device=self.device)
        for start in range(0, len(full), CHUNK):
            run = range(start, min(start + CHUNK, len(full)))
            full[run.start : run.stop] = self.assemble(name, pieces, torch.float32, run)
        return full.view(logical_shape(param))

    def part(self, name: str, run: range | None) -> Tensor:
        """(n,) a run of a parameter's effective weight, or all of it, fp32, on every rank. Collective."""
        return self.assemble(name, self.pieces(name), torch.float32, run)

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write this rank's part of a parameter's elements from `start` on into its fp32 shards, given all of them."""
        for shard, s in self._places.get(name, ()):
            copy_common(values.reshape(-1), start, shard.view[s.part], s.start)


def copy_common(source: Tensor, start: int, target: Tensor, begin: int) -> None:
    """What both hold of a parameter, of which they are the elements from `start` and from `begin` on."""
    first, last = max(start, begin), min(start + source.numel(), begin + target.numel())
    if first < last:
        target[first - begin : last - begin].copy_(source[first - start : last - start])
