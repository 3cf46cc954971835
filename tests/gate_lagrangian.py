"""How gates are learned, said naively: by bisection where pat takes Newton's steps, with costs by autograd, in fp64.

A part of tests/gate_oracle.py; nothing of `pat.pruning` is used, and every constant is written again.

# L layers, n units of a structure in a layer, a logits (L, n), p = P(z > 0), g = dL/dz, T temperature, t step
# s_k the share that constraint k removes in expectation, d_k what is due of it, c = -ds/dp what a unit costs

dense     nothing moves
soft      a = initial + spread * standardised log(sum of h / c), over the units of a constraint and all steps so far,
          + what the steps have moved; h: the mean over examples b of |dL_b/dz|
          z is sampled from a / T;  a <- a - (lr T g + l_k c) / r  with the l_k under which s_k = d_k afterwards
          r: the root mean square of g, over the units of a structure and all steps (decay 0.999)
          T: 1, and in the last quarter of the phase down to the method's, by equal factors
tied      all sites of a structure, where the budget leaves one width in all layers: each shifted to their mean share
hard      z = the gate without noise, of what stays; 1 where that is 0
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.formulas import hard_concrete, hard_concrete_mean, hard_concrete_open
from tests.gate_choice import Shape, Units, cost

LEARNED = ("l0", "smooth")
FAR = 1e7  # a multiplier beyond all


@dataclass(frozen=True)
class Options:
    """Of the method, with pat's defaults."""

    lr: float = 0.03
    initial: float = 3.0
    spread: float = 1.0
    temperature: float = 0.02


def temperature(options: Options, t: int, start: int, hard: int) -> float:
    """T of a soft step."""
    length = max(1, round((hard - start) / 4))
    return options.temperature ** min(max((t + 1 - hard + length) / length, 0.0), 1.0)


def noise(t: int, count: int, seed: int = 0, pruner: str = "gates") -> Tensor:
    """(count,) uniform: a function of the run's seed, the pruner's name and the step."""
    digest = hashlib.sha256(f"{seed} {pruner} {t}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") // 2)
    return torch.rand(count, generator=generator).clamp(1e-6, 1.0 - 1e-6)


class Learner:
    """The logits, from step to step."""

    def __init__(
        self, shape: Shape, budget: Mapping[str, Any], structures: Sequence[str], method: str, options: Options
    ) -> None:
        self.shape, self.budget, self.method, self.options = shape, budget, method, options
        full = {name: torch.ones(shape.layers, shape.units(name), dtype=torch.float64) for name in structures}
        self.a = {name: options.initial * value for name, value in full.items()}
        self.importance = {name: 0.0 * value for name, value in full.items()}
        self.squares: dict[str, list[float]] = {name: [] for name in structures}  # mean g^2 of every step
        self.final, self.member = self._constraints(full)
        for value in full.values():
            value.requires_grad_()
        grads = torch.autograd.grad(self.removed(full).sum(), list(full.values()))
        self.cost = {name: -grad for name, grad in zip(full, grads, strict=True)}

    # -- formulas of the gates --------------------------------------------------------------------------------------

    def is_open(self, a: Units, temperature: float = 1.0) -> Units:
        """P(z > 0): Louizos et al. 2018, or of the gate without noise sigmoid(a / T)."""
        formula = hard_concrete_open if self.method == "l0" else torch.sigmoid
        return {name: formula(value / temperature) for name, value in a.items()}

    def sample(self, t: int, temperature: float) -> Units:
        """The gates of a step."""
        if self.method == "smooth":
            return self.mean(temperature)
        sizes = [value.numel() for value in self.a.values()]
        parts = noise(t, sum(sizes)).double().split(sizes)
        return {
            name: hard_concrete(value / temperature, part.view_as(value)).float()
            for (name, value), part in zip(self.a.items(), parts, strict=True)
        }

    def mean(self, temperature: float) -> Units:
        """The gates without noise."""
        return {name: hard_concrete_mean(value / temperature).float() for name, value in self.a.items()}

    def worth(self) -> Units:
        """P(z > 0) times cost: what keeping a unit keeps of the expected cost."""
        return {name: p * self.cost[name] for name, p in self.is_open(self.a).items()}

    # -- the constraints ---------------------------------------------------------------------------------------------

    def removed(self, p: Units) -> Tensor:
        """(K,) s: of every site, or of all layers where they are units; under a cost budget one, of the model."""
        if self.budget["name"] == "shape":
            return torch.cat([1.0 - (v.mean(0) if v.shape[1] == 1 else v.mean(1)) for v in p.values()])
        dense = {name: torch.ones_like(value) for name, value in p.items()}
        return 1.0 - (cost(self.shape, self.budget, p) / cost(self.shape, self.budget, dense)).reshape(1)

    def _constraints(self, full: Units) -> tuple[Tensor, dict[str, Tensor]]:
        """(K,) what s is in the end, and for every unit the constraint that it counts in."""
        if self.budget["name"] != "shape":
            return torch.tensor([self.budget["sparsity"]]), {name: v.long() * 0 for name, v in full.items()}
        final, member = [], {}
        for name, value in full.items():
            rows = 1 if value.shape[1] == 1 else len(value)
            member[name] = (len(final) + torch.arange(rows)[:, None]).expand(value.shape)
            final += rows * [1.0 - self.budget["keep"][name] / (value.numel() // rows)]
        return torch.tensor(final, dtype=torch.float64), member

    # -- the steps ---------------------------------------------------------------------------------------------------

    def observe(self, grads: Units, sizes: Units) -> None:
        """A dense step."""
        self._scale(grads)
        for name, size in sizes.items():
            self.importance[name] += size

    def begin(self) -> None:
        """Before the first soft step."""
        for name, part in self.followed().items():
            self.a[name] = self.a[name] + part

    def followed(self) -> Units:
        """The part of the logits that follows the importance."""
        seen = torch.cat([value.flatten() for value in self.importance.values()])
        if not seen.any():
            return {name: 0.0 * value for name, value in self.importance.items()}
        x = {name: (v.clamp(min=seen[seen > 0].min()) / self.cost[name]).log() for name, v in self.importance.items()}
        found = {name: 0.0 * value for name, value in x.items()}
        for k in range(len(self.final)):
            own = torch.cat([x[name][member == k] for name, member in self.member.items()])
            for name, member in self.member.items():
                spread = self.options.spread * (x[name] - own.mean()) / own.std(correction=0)
                found[name] = torch.where(member == k, spread, found[name])
        return found

    def step(self, grads: Units, sizes: Units, temperature: float, due: float) -> None:
        """A soft step, at whose end `due` of every constraint's share is removed in expectation."""
        before = self.followed()
        for name, size in sizes.items():
            self.importance[name] += size
        for name, after in self.followed().items():
            self.a[name] = self.a[name] + after - before[name]
        r, lr = self._scale(grads), self.options.lr
        against = {name: self.a[name] - lr * temperature * g.double() / r[name] for name, g in grads.items()}
        against = self._even(against, temperature)

        def moved(by: Tensor) -> Units:
            return {name: a - by[self.member[name]] * self.cost[name] / r[name] for name, a in against.items()}

        wanted = due * self.final
        multiplier = bisect(lambda by: self.removed(self.is_open(moved(by), temperature)) < wanted, len(wanted))
        self.a = self._even(moved(multiplier), temperature)

    def _scale(self, grads: Units) -> dict[str, float]:
        found = {}
        for name, grad in grads.items():
            self.squares[name].append(float(grad.double().square().mean()))
            weights = torch.tensor([0.999**age for age in reversed(range(len(self.squares[name])))]).double()
            found[name] = float((weights * torch.tensor(self.squares[name])).sum() / weights.sum()) ** 0.5
        return found

    def _even(self, a: Units, temperature: float) -> Units:
        """Sites that are tied."""
        if self.budget["name"] == "shape" or self.budget.get("per_layer"):
            return a
        found = {}
        for name, value in a.items():
            wanted = self.is_open({name: value}, temperature)[name].mean()

            def fewer(by: Tensor, name: str = name, value: Tensor = value, wanted: Tensor = wanted) -> Tensor:
                return self.is_open({name: value + by[:, None]}, temperature)[name].mean(1) < wanted

            found[name] = value if value.shape[1] == 1 else value + bisect(fewer, len(value))[:, None]
        return found


def bisect(too_low: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """(count,) where `too_low` ends to hold, of each on its own."""
    low, high = torch.full((count,), -FAR, dtype=torch.float64), torch.full((count,), FAR, dtype=torch.float64)
    for _ in range(64):
        middle = (low + high) / 2
        below = too_low(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
