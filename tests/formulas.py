"""Formulas of papers, written again, with constants of their own: hard concrete gates and distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# -- distillation, Hinton et al. 2015 and Jiao et al. 2020 -------------------------------------------------------------


def distillation_loss(
    student: Any,  # outputs with logits (b, s, v) and hidden states
    teacher: Any,
    labels: Tensor,  # (b, s)
    weight: float,
    temperature: float,
    hidden_weight: float,
    layer_map: Sequence[int],  # teacher layer of each student layer
) -> Tensor:
    """(1 - w) CE + w T^2 KL(teacher || student) over the tokens that predict one, + h * mean squared difference."""
    answers, taught = student.logits[:, :-1].flatten(0, 1), teacher.logits[:, :-1].flatten(0, 1)
    task = nn.functional.cross_entropy(answers, labels[:, 1:].flatten())
    p = torch.softmax(taught / temperature, -1)
    kl = (p * (p.log() - torch.log_softmax(answers / temperature, -1))).sum(-1).mean()
    pairs = [(student.hidden_states[i + 1], teacher.hidden_states[j + 1]) for i, j in enumerate(layer_map)]
    hidden = torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
    return (1.0 - weight) * task + weight * temperature**2 * kl + hidden_weight * hidden


# -- learned gates: hard concrete, Louizos et al. 2018, arXiv:1712.01312 -----------------------------------------------

BETA, ZETA, GAMMA = 2.0 / 3.0, 1.1, -0.1  # temperature; the paper's names: s is stretched to (gamma, zeta)


def hard_concrete(a: Tensor, u: Tensor) -> Tensor:
    """Equations 10 and 11: s = sigmoid((log u - log(1 - u) + a) / beta), z = s (zeta - gamma) + gamma in [0, 1]."""
    s = 1.0 / (1.0 + torch.exp(-(torch.log(u) - torch.log(1.0 - u) + a) / BETA))
    return torch.clip(s * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def hard_concrete_open(a: Tensor) -> Tensor:
    """Equation 12: P(z != 0) = sigmoid(a - beta log(-gamma / zeta))."""
    return 1.0 / (1.0 + torch.exp(-(a - BETA * math.log(-GAMMA / ZETA))))


def hard_concrete_mean(a: Tensor) -> Tensor:
    """Equation 13, at test time: min(1, max(0, sigmoid(a) (zeta - gamma) + gamma))."""
    return torch.clip((ZETA - GAMMA) / (1.0 + torch.exp(-a)) + GAMMA, 0.0, 1.0)
