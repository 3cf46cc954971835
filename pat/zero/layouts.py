"""ZeRO's layout: which piece of which parameter lies where in this rank's flat fp32 shards.

The only file that knows how DeepSpeed lays out masters, gradients and forward copies. Everything else sees
`Shard` (a flat fp32 tensor that the base optimizer steps) and `Segment` (a run of one parameter inside it).

| layout | DeepSpeed's optimizer | a shard is |
| --- | --- | --- |
| zero12 | DeepSpeedZeroOptimizer (ZeRO 1, 2) | this rank's part of a param group |
| zero3 | DeepSpeedZeroOptimizer_Stage3 | this rank's part of a sub-group |
| zero0_lp | FP16_UnfusedOptimizer, FP16_Optimizer (ZeRO 0, bf16 and fp16) | a parameter, or a whole param group |
| zero0_fp32 | none (ZeRO 0, fp32) | a parameter |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pat.common.comm import LOCAL, Comm
from pat.common.parameters import logical_numel, logical_shape

CHUNK = 1 << 24  # elements per message when a parameter is streamed over the ranks


@dataclass(frozen=True)
class Shard:
    """A flat fp32 tensor that the base optimizer steps."""

    index: int
    group: int  # param group of the base optimizer
    flat: Tensor  # (n,) fp32; (shape) for zero0, seen through `view`
    segments: tuple[Segment, ...]

    @property
    def view(self) -> Tensor:
        """The shard as a vector."""
        return self.flat.data.view(-1)


@dataclass(frozen=True)
class Piece:
    """A run of a parameter that this rank contributes when the parameter is put together."""

    start: int
    data: Tensor  # (n,)


class Shards:
    """This rank's shards of one DeepSpeed engine, and what may be done to them from outside."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.zero = engine.optimizer  # DeepSpeed's wrapper, or the base optimizer itself at zero0_fp32
        self.base: torch.optim.Optimizer = engine.basic_optimizer
        self.layout = _layout(engine)
        self.parameters: dict[str, Any] = dict(engine.module.named_parameters())  # frozen ones too, tied weights once
        self.names = {id(p): n for n, p in self.parameters.items()}
        self.shards = list(_FINDERS[self.layout](self.zero, self.names, self.base))
        self._places: dict[str, list[tuple[Shard, Segment]]] = {}
        for shard in self.shards:
            for segment in shard.segments:
                self._places.setdefault(segment.name, []).append((shard, segment))
        self.device = engine.device
        replicated = self.layout.startswith("zero0")
        world = Comm(dist.get_rank(), dist.get_world_size(), torch.device(engine.device))
        self.world = world
        self.comm = LOCAL if replicated else world

    @property
    def replicated(self) -> bool:
        """Every rank holds every shard whole (ZeRO 0)."""
        return self.layout.startswith("zero0")

    def group_of(self, shard: Shard) -> dict[str, Any]:
        """The base optimizer's param group of a shard."""
        return self._groups[shard.group]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    # -- gradients -------------------------------------------------------------------------------------------------

    def pending_gradients(self, shard: Shard) -> Iterator[Piece]:
        """The reduced gradient that waits for the coming step, still multiplied by the loss scale."""
        if self.layout in ("zero12", "zero3") and not self._offloaded:
            offset = 0
            for grad in self.zero.averaged_gradients[shard.index] or ():
                yield Piece(offset, grad.view(-1))
                offset += grad.numel()
        elif shard.flat.grad is not None:
            yield Piece(0, shard.flat.grad.view(-1))

    @property
    def _offloaded(self) -> bool:
        return bool(getattr(self.zero, "cpu_offload", False) or getattr(self.zero, "offload_optimizer", False))

    @property
    def loss_scale(self) -> float:
        """What the pending gradients are multiplied by: 1 but for fp16."""
        return float(getattr(self.zero, "loss_scale", 1.0) or 1.0) if self.engine.fp16_enabled() else 1.0

    def replace_norm(self, norm: Callable[[], Tensor], finite: Callable[[], bool]) -> None:
        """Let DeepSpeed clip by `norm()` (a 0-dim fp32 tensor, of the still scaled gradients) instead of its own.

        Collective inside `norm`: DeepSpeed calls it on every rank, once per step, before any hook, and skips a step
        whose norm is infinite. ZeRO 0 does not look at the norm: there `not finite()` counts as an overflow.
        """
        zero = self.zero
        if self.layout == "zero12":
            zero.scaled_global_norm = lambda norm_type=2: torch.linalg.vector_norm(torch.stack([norm()]))
        elif self.layout == "zero3":
            zero._get_norm_groups = lambda: [norm()]
        elif self.layout == "zero0_lp":
            original = zero.unscale_and_clip_grads

            def clip(*args: Any, **kwargs: Any) -> Any:
                total = norm()
                zero._global_grad_norm = total / zero.loss_scale_config.cur_scale
                return original(*args[:-1], total, **kwargs)  # the norm is the last positional argument

            zero.unscale_and_clip_grads = clip
            checker = zero.overflow_checker
            overflowed = checker.has_overflow
            checker.has_overflow = lambda *args, **kwargs: overflowed(*args, **kwargs) or not finite()

    def clip_fp32(self, norm: Callable[[], Tensor], max_norm: float) -> bool:
        """ZeRO 0 in fp32 has no wrapper: clip here, and drop a step whose norm is not finite. True: go on."""
        total = norm()
        self.engine._global_grad_norm = total
        if not torch.isfinite(total):
            for shard in self.shards:
                shard.flat.grad = None
            return False
        if max_norm > 0:
            scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
            for shard in self.shards:
                if shard.flat.grad is not None:
                    shard.flat.grad.mul_(scale)
        return True

    # -- after a change of the fp32 shards outside a step ----------------------------------------------------------

    @torch.no_grad()
    def refresh_forward(self) -> None:
        """Cast the fp32 shards into the forward copies and gather them. Collective."""
        zero = self.zero
        if self.layout == "zero12":
            zero.update_lp_params()
        elif self.layout == "zero3":
            zero._partition_all_parameters()
            for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
                zero.fp16_partitioned_groups_flat[i].data.copy_(flat.data)
                zero._unflatten_partitioned_parameters(i)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].partition(zero.persistent_parameters)
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        elif self.layout == "zero0_lp":
            for low, high in _zero0_pairs(zero):
                low.data.copy_(high.data.view_as(low))

    def forward_segment(self, segment: Segment) -> Tensor:
        """(n,) the forward copy of a segment, for checking it."""
        param = self.parameters[segment.name]
        if self.layout == "zero3":
            return param.ds_tensor.data.view(-1)[: segment.numel]
        return param.data.view(-1)[segment.start : segment.start + segment.numel]

    def numel(self, param: Any) -> int:
        """Elements, also of a partitioned parameter."""
        return logical_numel(param)

    # -- whole parameters, one at a time ---------------------------------------------------------------------------

    def pieces(self, name: str) -> list[Piece]:
        """This rank's fp32 pieces of a parameter's effective weight; each element comes from one rank only."""
        if self.replicated and self.world.rank != 0:
            return []
        places = self._places.get(name, ())
        owned = [Piece(s.start, shard.view[s.part]) for shard, s in places]
        param = self.parameters[name]
        if owned or param.requires_grad:
            return owned
        return _frozen_pieces(param, self.world.rank)

    def assemble(self, name: str, pieces: list[Piece], dtype: torch.dtype) -> Tensor:
        """(numel,) the whole parameter on every rank, from all ranks' pieces. Collective."""
        numel = logical_numel(self.parameters[name])
        full = torch.zeros(numel, dtype=dtype, device=self.device)
        for piece in pieces:
            full[piece.start : piece.start + piece.data.numel()].copy_(piece.data)
        for start in range(0, numel, CHUNK):
            part = full[start : start + CHUNK]
            part.copy_(self.world.sum(part))
        return full


def _layout(engine: Any) -> str:
    kind = type(engine.optimizer).__name__
    layouts = {
        "DeepSpeedZeroOptimizer": "zero12",
        "DeepSpeedZeroOptimizer_Stage3": "zero3",
        "FP16_UnfusedOptimizer": "zero0_lp",
        "FP16_Optimizer": "zero0_lp",
    }
    if kind in layouts:
        return layouts[kind]
    if engine.optimizer is engine.basic_optimizer:
        return "zero0_fp32"
    raise ValueError(
        f"DeepSpeed chose {kind}, a layout in which pat would not know which weights it prunes; "
        "use ZeRO 0 to 3 without data_types.grad_accum_dtype, ZenFlow or SuperOffload"
    )


def _segments(parts: list[tuple[Any, int, int, int]], names: dict[int, str], shard: int) -> tuple[Segment, ...]:
    """Segments from (parameter, start in it, numel, offset in the shard), in shard order."""
    found = [
        Segment(names[id(p)], logical_shape(p), start, numel, shard, offset)
        for p, start, numel, offset in parts
        if numel
    ]
    return tuple(sorted(found, key=lambda s: s.offset))


def _find_zero12(zero: Any, names: dict[int, str], _: Any) -> Iterator[Shard]:
    for group, flat in enumerate(zero.single_partition_of_fp32_groups):
        parts = []
        for param in zero.bit16_groups[group]:
            mapping = param._hp_mapping
            if mapping is not None:
                lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
                parts.append((param, lp.start, hp.numel, hp.start))
        yield Shard(group, group, flat, _segments(parts, names, group))


def _find_zero3(zero: Any, names: dict[int, str], _: Any) -> Iterator[Shard]:
    rank = dist.get_rank()
    for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
        parts, offset = [], 0
        for param in zero.fp16_groups[index]:
            width = param.ds_tensor.ds_numel  # every rank's part; the last one's tail is padding
            start = rank * width
            parts.append((param, start, max(0, min(width, param.ds_numel - start)), offset))
            offset += width
        yield Shard(index, zero.sub_group_to_group_id[index], flat, _segments(parts, names, index))


def _find_zero0_lp(zero: Any, names: dict[int, str], _: Any) -> Iterator[Shard]:
    index = 0
    for group, low in enumerate(zero.fp16_groups):
        if hasattr(zero, "fp32_groups_flat"):
            parts, offset = [], 0
            for param in low:
                parts.append((param, 0, param.numel(), offset))
                offset += param.numel()
            yield Shard(group, group, zero.fp32_groups_flat[group], _segments(parts, names, group))
            continue
        for param, flat in zip(low, zero.fp32_groups[group], strict=True):
            yield Shard(index, group, flat, _segments([(param, 0, param.numel(), 0)], names, index))
            index += 1


def _find_zero0_fp32(_: Any, names: dict[int, str], base: Any) -> Iterator[Shard]:
    index = 0
    for group, settings in enumerate(base.param_groups):
        for param in settings["params"]:
            yield Shard(index, group, param, _segments([(param, 0, param.numel(), 0)], names, index))
            index += 1


_FINDERS: dict[str, Callable[[Any, dict[int, str], Any], Iterator[Shard]]] = {
    "zero12": _find_zero12,
    "zero3": _find_zero3,
    "zero0_lp": _find_zero0_lp,
    "zero0_fp32": _find_zero0_fp32,
}


def _zero0_pairs(zero: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(forward copy, fp32 master), parameter by parameter."""
    for group, low in enumerate(zero.fp16_groups):
        if hasattr(zero, "fp32_groups_flat"):
            yield from zip(low, zero.fp32_groups_flat[group].split([p.numel() for p in low]), strict=True)
        else:
            yield from zip(low, zero.fp32_groups[group], strict=True)


def _frozen_pieces(param: Any, rank: int) -> list[Piece]:
    if hasattr(param, "ds_tensor"):
        width = param.ds_tensor.ds_numel
        numel = max(0, min(width, param.ds_numel - rank * width))
        return [Piece(rank * width, param.ds_tensor.data.view(-1)[:numel])]
    return [Piece(0, param.data.view(-1))] if rank == 0 else []


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
