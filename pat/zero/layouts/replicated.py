"""ZeRO 0: every rank has all of the optimizer's fp32 weights, and the ranks' copies are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pat.zero.layouts.base import Held, Shard, ZeroLayout

# -- bf16 and fp16 -----------------------------------------------------------------------------------------------------


class Zero0LowPrecision(ZeroLayout):
    """FP16_UnfusedOptimizer, where a shard is a parameter's fp32 copy; FP16_Optimizer (FusedAdam), where it is a flat
    param group's.
    """

    name = "zero0_lp"
    replicated = True

    @property
    def _flat_groups(self) -> Any:
        return getattr(self.zero, "fp32_groups_flat", None)  # None of FP16_UnfusedOptimizer

    def _find_shards(self) -> Iterator[Shard]:
        index = 0
        for group, params in enumerate(self.zero.fp16_groups):
            if self._flat_groups is not None:
                contents, offset = list[Held](), 0
                for param in params:
                    contents.append((param, 0, param.numel(), offset))
                    offset += param.numel()
                yield Shard(group, group, self._flat_groups[group], self._segments(group, contents))
                continue
            for param, flat in zip(params, self.zero.fp32_groups[group], strict=True):
                yield Shard(index, group, flat, self._segments(index, [(param, 0, param.numel(), 0)]))
                index += 1

    def replace_norm(self, norm: Callable[[], Tensor], finite: Callable[[], bool]) -> None:
        """See ZeroLayout."""
        zero = self.zero
        original = zero.unscale_and_clip_grads

        def clip(*args: Any, **kwargs: Any) -> Any:
            total = norm()
            zero._global_grad_norm = total / zero.loss_scale_config.cur_scale
            return original(*args[:-1], total, **kwargs)  # the norm is the last positional argument

        zero.unscale_and_clip_grads = clip
        checker = zero.overflow_checker
        overflowed = checker.has_overflow

        def has_overflow(*args: Any, **kwargs: Any) -> bool:
            return overflowed(*args, **kwargs) or not finite()

        checker.has_overflow = has_overflow

    @torch.no_grad()
    def refresh_forward(self) -> None:
        """See ZeroLayout."""
        for group, params in enumerate(self.zero.fp16_groups):
            if self._flat_groups is not None:
                masters = self._flat_groups[group].split([param.numel() for param in params])
            else:
                masters = self.zero.fp32_groups[group]
            for param, master in zip(params, masters, strict=True):
                param.data.copy_(master.data.view_as(param))


# -- fp32 --------------------------------------------------------------------------------------------------------------


class Zero0Fp32(ZeroLayout):
    """No optimizer of DeepSpeed's: a shard is a parameter itself, and only pat clips, and skips a step."""

    name = "zero0_fp32"
    replicated = True

    def _find_shards(self) -> Iterator[Shard]:
        index = 0
        for group, settings in enumerate(self.base.param_groups):
            for param in settings["params"]:
                yield Shard(index, group, param, self._segments(index, [(param, 0, param.numel(), 0)]))
                index += 1

    def replace_norm(self, norm: Callable[[], Tensor], finite: Callable[[], bool]) -> None:
        """Nothing: DeepSpeed takes no norm here. See clip_before_step."""

    def clip_before_step(self, norm: Callable[[], Tensor], max_norm: float) -> bool:
        """See ZeroLayout."""
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

    def refresh_forward(self) -> None:
        """Nothing: the forward reads the shards themselves."""
