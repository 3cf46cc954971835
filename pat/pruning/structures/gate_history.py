"""The past of the gates, averaged as Adam averages gradients: how its moments change when gates are folded.

loss(w') with w' = z w:  dL/dw = z dL/dw'.  Folded, the parameter is w' and its gradient dL/dw', so the moments
of w, sums over the steps of z G and of z^2 G^2, become those of w':
exp_avg' = exp_avg / mean(z), exp_avg_sq' = exp_avg_sq / mean(z^2), each mean with the moment's own decay
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEAST = 1e-6  # a mean below it: the weights behind the gate have learned nothing, and their moments begin anew


class GateHistory:
    """(U,) fp32 means of z and of z^2 over the optimizer steps that were applied."""

    def __init__(self, ones: Tensor) -> None:
        self.mean, self.square = ones.clone(), ones.clone()
        self.steps = 0

    def add(self, z: Tensor | None, betas: tuple[float, float]) -> None:
        """One applied step, in which z, (U,), multiplied; None: 1, as in every step before."""
        self.steps += 1
        if z is not None:
            for average, value, beta in ((self.mean, z, betas[0]), (self.square, z * z, betas[1])):
                average += (value - average) * ((1.0 - beta) / (1.0 - beta**self.steps))

    def factors(self) -> dict[str, Tensor]:
        """(U,) what multiplies each of Adam's moments of the weights that are folded."""
        return {"exp_avg": _inverse(self.mean), "exp_avg_sq": _inverse(self.square)}

    def tensors(self) -> dict[str, Tensor]:
        """Both means, (U,) fp32, by the names that a checkpoint has for them."""
        return {"z_mean": self.mean, "z_square": self.square}

    def load(self, tensors: dict[str, Tensor], shared: dict[str, Any]) -> None:
        """Go on from what was saved; checkpoints from before there was a history count as having had open gates."""
        ones = torch.ones_like(self.mean)
        self.mean, self.square = (tensors.get(key, ones).clone() for key in self.tensors())
        self.steps = shared.get("steps", max(0, shared["begun"]))


def _inverse(mean: Tensor) -> Tensor:
    return torch.where(mean > LEAST, 1.0 / mean, torch.zeros_like(mean))
