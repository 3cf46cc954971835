"""Schedules of the learning rate. One file a schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast

from pat.common import scan
from pat.schema import OptimConfig


@dataclass(frozen=True)
class Moment:
    """What a schedule may look at, at a step after the warm-up."""

    t: int
    num_steps: int  # of the run
    warmup: int  # steps of it
    cuts: tuple[int, ...] = ()  # steps at which something is pruned, rising

    @property
    def done(self) -> float:
        """The share of the steps after the warm-up that are behind."""
        return self._share(self.warmup, self.num_steps)

    @property
    def done_since_cut(self) -> float:
        """The share of the steps between the last cut, or the warm-up, and the next, or the end, that are behind."""
        bounds = [self.warmup, *(cut for cut in self.cuts if cut > self.warmup), self.num_steps]
        place = bisect_right(bounds, self.t, hi=len(bounds) - 1)
        return self._share(bounds[place - 1], bounds[place])

    def _share(self, begin: int, end: int) -> float:
        return (self.t - begin) / max(1, end - begin)


@dataclass(frozen=True)
class LearningRate(ABC):
    """A learning rate schedule: at(moment) in [0, 1] for the steps after the warm-up. One file each."""

    name: str

    follows_cuts: ClassVar[bool] = False  # whether it must know the cuts in advance

    @abstractmethod
    def at(self, moment: Moment) -> float:
        """The part of the way from `min_lr_ratio` (0) up to the whole rate (1)."""

    def in_words(self, pruned: bool) -> str:
        """How the rate goes after the warm-up, with or without pruning."""
        return self.name


@cache
def classes() -> Mapping[str, type[LearningRate]]:
    """Every schedule, by name, sorted."""
    return cast(Mapping[str, type[LearningRate]], scan.named_classes(__name__, "learning rates"))


def build(name: str) -> LearningRate:
    """The schedule of that name; ValueError where there is none."""
    if name not in classes():
        raise ValueError(f"there is no learning rate called {name!r}: allowed are {', '.join(classes())}")
    return classes()[name](name)


def highest(optim: OptimConfig, model: Any) -> float:
    """The rate of a model's weights after the warm-up: lr * min(1, base_width / hidden size), or lr.

    Adam moves each weight by about the rate, whatever the gradient, so a map of more inputs moves its outputs further:
    the rate that suits a model falls as 1 / width. ValueError where base_width is given and the model's config has no
    hidden_size. Source: Yang et al. 2022 (muP), arXiv:2203.03466, where all else is scaled, too.
    """
    if optim.base_width is None:
        return optim.lr
    hidden = getattr(model.config.get_text_config(), "hidden_size", None)
    if not hidden:
        raise ValueError(
            f"optim.base_width={optim.base_width} lowers the learning rate of wider models, but the config of this "
            f"one has no hidden_size: give a rate of your own, optim.lr={optim.lr:g}, which takes base_width away"
        )
    return optim.lr * min(1.0, optim.base_width / hidden)


def warmup_steps(warmup: float, num_steps: int) -> int:
    """The warm-up in steps, from a number of steps or a share of the run."""
    return round(warmup * num_steps) if 0 < warmup < 1 else int(warmup)
