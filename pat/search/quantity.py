"""The searched quantity: the sparsity of a pruner's budget, or the share of its structures that a shape keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pat.pruning.budgets.shape import Shape
from pat.pruning.pruner import Pruner
from pat.pruning.structures.grid import Limits, groups
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import Config

DIGITS = 6
SHARES = 0.25  # of what is asked for, where the search begins unless told otherwise


@dataclass(frozen=True)
class Quantity:
    """A setting of one pruner's budget."""

    pruner: str
    keep: tuple[str, ...] = ()  # the structures that keep the share; (): it is a sparsity

    @property
    def word(self) -> str:
        """Its name in sentences."""
        return "keep" if self.keep else "sparsity"

    def name(self, value: float) -> str:
        """The name of the run with that value."""
        return f"{self.word}={value:g}"

    def override(self, value: float) -> str:
        """The key of the command line that sets it."""
        if not self.keep:
            return f"pruners.{self.pruner}.budget.sparsity={value:g}"
        return f"pruners.{self.pruner}.budget.keep={{{','.join(f'{name}:{value:g}' for name in self.keep)}}}"

    def applied(self, config: Config, value: float) -> Config:
        """A config with that value. ValueError where it is invalid."""
        budget: Any = config.pruners[self.pruner].budget
        field = {"keep": dict.fromkeys(self.keep, value)} if self.keep else {"sparsity": value}
        return config.changed(**{f"pruners__{self.pruner}__budget": dataclasses.asdict(budget) | field})


def quantity_of(config: Config, pruner: str | None) -> Quantity:
    """The quantity of a pruner, which need not be named if it is the only one. Raises ValueError."""
    names = list(config.pruners)
    if not names:
        raise ValueError("nothing is pruned, so there is nothing to search: name a pruner, or take another recipe")
    if pruner is None and len(names) > 1:
        raise ValueError(f"there are several pruners ({', '.join(names)}): name the one to search with --pruner NAME")
    if pruner is not None and pruner not in names:
        raise ValueError(f"--pruner {pruner}: there is no such pruner; there are {', '.join(names)}")
    name = pruner or names[0]
    budget = config.pruners[name].budget
    return Quantity(name, tuple(budget.keep) if isinstance(budget, Shape) else ())


def asked(config: Config, quantity: Quantity, pruner: Pruner) -> float:
    """The value in the config's own budget: its sparsity, or the share that it keeps. Raises ValueError."""
    budget: Any = config.pruners[quantity.pruner].budget
    if not quantity.keep:
        return budget.sparsity
    structures = next(each for each in pruner.structure_pruners if each.name == quantity.pruner)
    limits = Limits(budget.multiple_of, budget.tensor_parallel, budget.hf_compatible)
    full = {group.structure: group.full for group in groups(structures.anatomy, structures.sites, limits, False)}
    shares = {name: count if isinstance(count, float) else count / full[name] for name, count in budget.keep.items()}
    if len({round(share, DIGITS) for share in shares.values()}) > 1:
        kept = ", ".join(f"{name}: {share:.3g}" for name, share in shares.items())
        raise ValueError(
            f"pruners.{quantity.pruner}.budget keeps {kept}, and the search is over one share: give all structures "
            "the same, or leave those out that are not searched"
        )
    return round(next(iter(shares.values())), DIGITS)


def grid(
    quantity: Quantity,
    wanted: float,  # what the budget asks for
    first: float | None,  # the least pruned, and ...
    last: float | None,  # ... the most; None: as asked for
    within: float,
) -> list[float]:
    """Values from the least pruned to the most, `within` apart, counted from the most. Raises ValueError."""
    keeps = bool(quantity.keep)
    gone = 1.0 - wanted if keeps else wanted
    last = wanted if last is None else last
    if first is None:
        first = 1.0 - SHARES * gone if keeps else SHARES * gone
    least, most = (1.0 - first, 1.0 - last) if keeps else (first, last)  # as what is removed
    if not 0.0 < least < most < 1.0:
        allowed = "1 > FROM > TO > 0" if keeps else "0 < FROM < TO < 1"
        raise ValueError(
            f"the search goes from {quantity.word} {first:g} to {last:g}, but must go to what prunes more: give --from "
            f"and --to with {allowed}"
        )
    if not 0.0 < within < 1.0:
        raise ValueError(f"--within is {within:g}: give how near the answer must be, above 0 and below 1, such as 0.02")
    steps = [most - i * within for i in range(int((most - least) / within + 1e-9) + 1)]
    found = {round(value, DIGITS) for value in [*steps, least]}
    return sorted({round(1.0 - value, DIGITS) for value in found}, reverse=True) if keeps else sorted(found)


def realised(
    config: Config,
    quantity: Quantity,
    values: Sequence[float],  # from the least pruned to the most
    model: nn.Module,  # on the meta device
) -> dict[float, float]:
    """Those values that the model can have, each with the sparsity that all pruners then come to; of those that come to
    the same units only the last. ValueError where none is left."""
    found: dict[float, tuple[float, float]] = {}  # weights removed, or the value -> value, sparsity
    refused: ValueError | None = None
    for value in values:
        try:
            pruner = Pruner(quantity.applied(config, value))
            pruner.attach(model)
        except ValueError as error:
            refused = error
            continue
        own = next(each for each in pruner.pruners if each.name == quantity.pruner)
        certain = not isinstance(own, StructurePruner) or own.goal.is_certain
        if gone := own.target_weights:
            found[gone if certain else -value] = (value, pruner.totals.target)
    if not found:
        raise refused or ValueError(f"no {quantity.word} from {values[0]:g} to {values[-1]:g} removes a unit")
    return dict(found.values())


def as_keys(quantity: Quantity, value: float) -> Mapping[str, str]:
    """The key and its value, as a table of runs shows them."""
    key, _, text = quantity.override(value).partition("=")
    return {key.removeprefix("pruners."): text}
