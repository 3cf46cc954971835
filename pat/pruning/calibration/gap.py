"""What a pruned model lacks behind a linear map, beside the model as it was before.

# N tokens (padding left out), d inputs of a linear map, o outputs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import Comm
from pat.common.parameters import is_conv1d


@dataclass(frozen=True)
class Gap:
    """What is missing where a linear map's output is added: e, of the model before less of the model as it is now."""

    cross: Tensor  # (o, d) mean of e x^T over the tokens, x the map's input now
    mean: Tensor  # (o,) of e


class GapProbe:
    """Hooks that see what linear maps give now, whose outputs are added up to the last one's, and sum up e x^T."""

    def __init__(
        self,
        modules: Mapping[str, Any],  # by matrix
        name: str,  # of the one whose inputs are x
    ) -> None:
        self.name = name
        self.outputs: dict[str, Tensor] = {}  # of a micro-batch
        self.handles = [module.register_forward_hook(partial(self._see, each)) for each, module in modules.items()]
        weight: Tensor = modules[name].weight
        shape = tuple(weight.shape)[::-1] if is_conv1d(modules[name]) else tuple(weight.shape)
        self.cross = torch.zeros(shape, dtype=torch.float64, device=weight.device)
        self.mean = self.cross.new_zeros(len(self.cross))

    def add(
        self,
        before: Mapping[str, Tensor],  # what the maps gave, in the shape that they give it now
        residual: tuple[Tensor, Tensor] | None,  # to which that is added, before and now; None: not counted
        real: Tensor,  # bool: which tokens are no padding
        scale: float = 1.0,  # m, by which the outputs are multiplied before they are added to the residual
    ) -> None:
        """The forward of a micro-batch is over."""
        missing = torch.stack([gave.float() - self.outputs[each].float() for each, gave in before.items()]).sum(0)
        if residual is not None:
            missing = missing + (residual[0].float() - residual[1].float()) / scale
        flat, x = (each.reshape(-1, each.shape[-1])[real.reshape(-1)] for each in (missing, self.inputs))
        self.cross += torch.mm(flat.T, x.float()).double()
        self.mean += flat.double().sum(0)

    def gap(self, comm: Comm, tokens: int) -> Gap:
        """The means over the tokens of all ranks. Collective."""
        return Gap(comm.sum(self.cross).div_(tokens), comm.sum(self.mean).div_(tokens))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def _see(self, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.outputs[name] = output
        if name == self.name:
            self.inputs = args[0]
