"""Which parameters train."""

from __future__ import annotations

from torch import nn

from pat.common import patterns
from pat.models import adapters
from pat.schema import Config


def choose_trainable(model: nn.Module, config: Config) -> None:
    """Freeze what does not train. With `peft` that is all but the adapters, which are inserted here. Raises
    ValueError."""
    if config.peft.r is None:
        freeze(model, config.optim.trainable)
    else:
        adapters.inject(model, config.peft, config.seed)
    patterns.check("optim.no_decay", config.optim.no_decay, [n for n, _ in model.named_parameters()])


def freeze(model: nn.Module, trainable: list[str]) -> None:
    """Leave only the parameters that a pattern names trainable. ValueError for a pattern that names none."""
    names = [n for n, _ in model.named_parameters()]
    patterns.check("optim.trainable", trainable, names)
    for name, param in model.named_parameters():
        param.requires_grad_(patterns.matches(name, trainable))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"optim.trainable={trainable} matches no parameter; it has {patterns.in_patterns(names)}")
