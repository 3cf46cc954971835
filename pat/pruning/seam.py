"""Where masks meet the optimizer: the hooks of its step, and the norm by which its gradients are clipped.

At every ZeRO stage the base optimizer's hooks fire in each step that DeepSpeed is certain to take, and in no skipped
one. So masks change there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pat.pruning.weights.kernels import SumOfSquares
from pat.pruning.weights.pruner import WeightPruner
from pat.pruning.weights.shard_state import MaskedShard
from pat.zero.layouts import ZeroLayout


class Seam:
    """The shards of all weight pruners in the optimizer's step."""

    def __init__(self, layout: ZeroLayout, pruners: Iterable[WeightPruner], kernels: str) -> None:
        self.layout, self.pruners = layout, list(pruners)
        self._states = {id(state.shard.flat): (pruner, state) for pruner in self.pruners for state in pruner.states}
        self._t = 0
        self._pending = False  # whether the hooks of step t have yet to fire
        largest = max((shard.flat.numel() for shard in layout.shards), default=0)
        self._sum_of_squares = SumOfSquares(kernels, largest)

    def install(self) -> None:
        """Register the hooks of the optimizer's step, which fire only in steps that are not skipped."""
        self.layout.base.register_step_pre_hook(self._before)
        self.layout.base.register_step_post_hook(self._after)

    @torch.no_grad()
    def begin(self, t: int) -> None:
        """Choose the masks of step `t`: last by those criteria that walk over the layers, with the others' masks in the
        weights. Collective."""
        order = sorted(self.pruners, key=_walks)
        for pruner in order:
            pruner.begin(t)
            if pruner.selected_at == t and pruner is not order[-1] and _walks(order[-1]):
                pruner.show_masks()

    def expect(self, t: int) -> None:
        """The optimizer's next step is step `t` of the run."""
        self._t, self._pending = t, True

    def has_stepped(self) -> bool:
        """Whether the expected step has come. If it has not, it is no longer expected."""
        stepped, self._pending = not self._pending, False
        return stepped

    def norm(self) -> Tensor:
        """0-dim fp32: sqrt(sum (G * M)^2), summed in fp64 and rounded once, of the still scaled gradient. Collective.

        M is the mask that the forward used: pruned weights have a gradient, but no share in the norm that clips the
        living ones. The fp64 sum makes the result the same however ZeRO cuts the shards.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.layout.device)
        for shard in self.layout.shards:
            owner = self._states.get(id(shard.flat))
            keep = None if owner is None else owner[1].keep
            for piece in self.layout.pending_gradients(shard):
                end = piece.start + piece.data.numel()
                for s in shard.segments:
                    low, high = max(s.offset, piece.start), min(s.offset + s.numel, end)
                    if low < high:
                        grad = piece.data[low - piece.start : high - piece.start]
                        flags = None if keep is None else keep[low:high]
                        total += self._sum_of_squares(grad, flags).to(total.device)
        return self.layout.comm.sum(total).sqrt().float()

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        stepped = [(p, g) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if self._pending and stepped:
            self._pending = False
            self.begin(self._t)
        for param, group in stepped:
            for pruner, state in self._of(param):
                pruner.before(state, param, group, self._t)

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                for pruner, state in self._of(param):
                    pruner.after(state, param)

    def _of(self, param: Tensor) -> Iterator[tuple[WeightPruner, MaskedShard]]:
        """The pruner of a shard, with its state; nothing for a shard that none prunes."""
        if id(param) in self._states:
            yield self._states[id(param)]


def _walks(pruner: WeightPruner) -> int:
    """0: it looks at no inputs; 1: before its first selection only; 2: at each."""
    needs = pruner.calibration
    return 0 if needs is None else 1 if needs.once else 2
