"""What two models made of the same prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """A prompt, and both outputs."""

    id: str
    prompt: str
    a: str
    b: str
    slices: tuple[str, ...] = ()  # DIMENSION=VALUE
    weight: float = 1.0
    agreement: float | None = None  # share of equal outputs: 0 or 1 for one answer, in between for many tokens
    kl: float | None = None  # KL(A || B) in nats, mean over positions
    first_difference: int | None = None  # the first token, from 0, in which the outputs differ; None: in none
    why: str | None = None  # B's is not right
    unit: str = ""  # pairs of one unit are not independent; empty: by itself


@dataclass(frozen=True)
class Outcome:
    """A number for each of some pairs, of A and of B."""

    name: str
    higher_is_better: bool
    positions: list[int] = field(default_factory=list)  # of the pairs that have it
    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    harm: list[float] = field(default_factory=list)  # how much worse B is, where the outcomes alone do not say

    def add(self, position: int, a: float, b: float, weight: float, harm: float | None = None) -> None:
        """Add the outcome of one pair."""
        worse = a - b if self.higher_is_better else b - a
        self.positions.append(position)
        self.a.append(a)
        self.b.append(b)
        self.weights.append(weight)
        self.harm.append(worse if harm is None else harm)


def check_finite(finite: bool, model: str | Path, item: str) -> None:
    """ValueError for a model that has diverged: whatever token has its highest logit by chance, it compares nothing."""
    if not finite:
        raise ValueError(
            f"{model} gives logits that are not finite for {item}: it has diverged, so there is nothing to compare"
        )


@dataclass(frozen=True)
class Asked:
    """Everything that was measured."""

    data: str
    pairs: list[Pair]
    outcomes: list[Outcome]
    notes: list[str] = field(default_factory=list)
    what: str = "prompts"  # or samples: what the pairs are of
