"""Hooks that sum up what goes into linear maps, each input once.

# B rows of a micro-batch, T tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pat.common.comm import Comm
from pat.models.experts import Seen, Watched, are_experts, parameter_of
from pat.pruning.calibration.calls import NotCalibrated
from pat.pruning.calibration.statistics import InputStatistic

Statistics = Mapping[str, Sequence[type[InputStatistic]]]  # which, of what goes into each matrix


class Enough(Exception):
    """The last input has been seen: the rest of the forward would be thrown away."""


def per_token(name: str, values: Tensor, real: Tensor) -> Tensor:
    """(tokens, width) of (B, T, width): what a matrix sees of each token that is no padding. `real` (B T,) bool. Raises
    NotCalibrated where it sees something else than the tokens."""
    if values.numel() != len(real) * values.shape[-1]:
        raise not_a_map(name)
    return values.reshape(-1, values.shape[-1])[real]


def per_own_token(seen: Seen, values: Tensor, real: Tensor) -> Tensor:
    """`per_token` of what one expert sees, (S, width)."""
    if seen.num_tokens != len(real):
        raise not_a_map(seen.name)
    return values[real[seen.tokens]]


def not_a_map(name: str) -> NotCalibrated:
    """For a matrix that is not applied to each token once, or gives something else than its product."""
    return NotCalibrated(
        f"{parameter_of(name)} is no linear map of each token (a router, or of other inputs than the layer's tokens): "
        "exclude it (pruners.NAME.exclude), or take a method without calibration (magnitude, movement, taylor)"
    )


class Probe:
    """Between `next` and the end of a forward, or Enough, every micro-batch adds to the sums."""

    def __init__(
        self,
        statistics: Statistics,
        to_the_end: bool,  # whether somebody wants the rest of the forward, too
    ) -> None:
        self.statistics = statistics
        self.to_the_end = to_the_end
        self.sums: dict[str, dict[type[InputStatistic], Tensor]] = {}  # by the first matrix that reads an input
        self.first: dict[str, str] = {}  # which that is, by matrix
        self.order: list[str] = []  # in which the first micro-batch came to the matrices
        self.handles: list[Any] = []

    def watch(self, path: str, module: nn.Module, names: Sequence[str]) -> None:
        """Sum up what goes into the linear maps of a module: one, or those of experts."""
        if are_experts(module):
            self.handles.append(Watched(module, path, self._see_expert))
        else:
            self.handles.append(module.register_forward_pre_hook(lambda _, args: self._see(names[0], args[0])))

    def next(self, real: Tensor) -> None:
        """A micro-batch begins, with these tokens (B, T) that are no padding."""
        once = len(self.order) == len(set(self.order)) == len(self.statistics)
        self.last = self.order[-1] if self.order and once and not self.to_the_end else None
        self.noting = not self.order
        self.real, self.seen = real.reshape(-1), list[tuple[Tensor, str]]()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def means(self, comm: Comm, tokens: int) -> dict[str, dict[type[InputStatistic], Tensor]]:
        """By matrix, over the tokens of all ranks, in the sums' own memory; matrices with one input get the same ones.
        Collective."""
        found = {
            name: {kind: kind.completed(comm.sum(value)).div_(tokens) for kind, value in sums.items()}
            for name, sums in self.sums.items()
        }
        return {name: found[self.first[name]] for name in self.statistics}

    def _see(self, name: str, inputs: Tensor) -> None:
        if self.noting:
            self.order.append(name)
        first = next((other for tensor, other in self.seen if tensor is inputs), name)
        self.first[name] = first
        if first == name:
            self.seen.append((inputs, name))
            self._add(name, per_token(name, inputs, self.real))
        if name == self.last:
            raise Enough

    def _see_expert(self, seen: Seen) -> None:
        if seen.name not in self.statistics:
            return
        if self.noting:
            self.order.append(seen.name)
        self.first[seen.name] = seen.name
        self._add(seen.name, per_own_token(seen, seen.inputs, self.real))
        if seen.name == self.last:
            raise Enough

    def _add(self, name: str, flat: Tensor) -> None:
        sums = self.sums.setdefault(name, {})
        for kind in self.statistics[name]:
            sums[kind] = kind.add(sums.get(kind), flat)
