"""ZeRO 1, 2 and 3: every rank has its own part of the optimizer's fp32 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pat.common.typed import untyped
from pat.zero.layouts.base import Held, Piece, Segment, Shard, ZeroLayout


def _averaged_gradients(zero: Any, shard: Shard) -> Iterator[Piece]:
    """The reduced gradient of a shard, where DeepSpeed keeps it until the step; offloaded, it is the shard's `grad`."""
    offset = 0
    for grad in zero.averaged_gradients[shard.index] or ():
        yield Piece(offset, grad.view(-1))
        offset += grad.numel()


# -- ZeRO 1 and 2 ------------------------------------------------------------------------------------------------------


class Zero12(ZeroLayout):
    """DeepSpeedZeroOptimizer: a shard is this rank's part of a param group; the forward's parameters are whole."""

    name = "zero12"

    def _find_shards(self) -> Iterator[Shard]:
        for group, flat in enumerate(self.zero.single_partition_of_fp32_groups):
            contents: list[Held] = []
            for param in self.zero.bit16_groups[group]:
                mapping = param._hp_mapping
                if mapping is not None:  # some of it is in this rank's part
                    forward, master = mapping.lp_fragment_address, mapping.hp_fragment_address
                    contents.append((param, forward.start, master.numel, master.start))
            yield Shard(group, group, flat, self._segments(group, contents))

    def pending_gradients(self, shard: Shard) -> Iterator[Piece]:
        """See ZeroLayout."""
        if self.zero.cpu_offload:
            return super().pending_gradients(shard)
        return _averaged_gradients(self.zero, shard)

    def replace_norm(self, norm: Callable[[], Tensor], finite: Callable[[], bool]) -> None:
        """See ZeroLayout."""

        def scaled_global_norm(norm_type: int = 2) -> Tensor:
            return untyped(torch.linalg).vector_norm(torch.stack([norm()]))

        self.zero.scaled_global_norm = scaled_global_norm

    @torch.no_grad()
    def refresh_forward(self) -> None:
        """See ZeroLayout."""
        self.zero.update_lp_params()


# -- ZeRO 3 ------------------------------------------------------------------------------------------------------------


class Zero3(ZeroLayout):
    """DeepSpeedZeroOptimizer_Stage3: a shard is this rank's part of a sub-group, and so are the forward's parameters.

    A parameter is cut into as many equal parts as there are ranks (`ds_tensor`); the last one's tail is padding.
    """

    name = "zero3"
    partitioned = True

    def _find_shards(self) -> Iterator[Shard]:
        for index, flat in enumerate(self.zero.fp32_partitioned_groups_flat):
            contents, offset = list[Held](), 0
            for param in self.zero.fp16_groups[index]:
                start, numel = self._own_part(param)
                contents.append((param, start, numel, offset))
                offset += param.ds_tensor.ds_numel
            yield Shard(index, self.zero.sub_group_to_group_id[index], flat, self._segments(index, contents))

    def _own_part(self, param: Any) -> tuple[int, int]:
        """(start, numel) of this rank's part of a parameter, without the padding."""
        width = param.ds_tensor.ds_numel
        start = self.world.rank * width
        return start, max(0, min(width, param.ds_numel - start))

    def pending_gradients(self, shard: Shard) -> Iterator[Piece]:
        """See ZeroLayout."""
        if self.zero.offload_optimizer:
            return super().pending_gradients(shard)
        return _averaged_gradients(self.zero, shard)

    def replace_norm(self, norm: Callable[[], Tensor], finite: Callable[[], bool]) -> None:
        """See ZeroLayout."""
        self.zero._get_norm_groups = lambda: [norm()]

    @torch.no_grad()
    def refresh_forward(self) -> None:
        """See ZeroLayout."""
        zero = self.zero
        zero._partition_all_parameters()
        for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
            zero.fp16_partitioned_groups_flat[i].data.copy_(flat.data)
            zero._unflatten_partitioned_parameters(i)
        if zero.persistent_parameters:  # small ones, which are whole all the time: they would keep their old values
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def forward_segment(self, segment: Segment) -> Tensor:
        """See ZeroLayout."""
        return self.parameters[segment.name].ds_tensor.data.view(-1)[: segment.numel]

    def fill_frozen(self, name: str, whole: Tensor) -> None:
        """See ZeroLayout."""
        param = self.parameters[name]
        start, numel = self._own_part(param)
        param.ds_tensor.data.view(-1)[:numel].copy_(whole.reshape(-1)[start : start + numel])

    def _frozen_pieces(self, param: Any) -> list[Piece]:
        start, numel = self._own_part(param)
        return [Piece(start, param.ds_tensor.data.view(-1)[:numel])]
