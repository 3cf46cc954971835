"""Hooks that sum up what goes into linear maps, each input once.

# B rows of a micro-batch, T tokens
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import Comm
from pat.models.experts import Seen, Watched, are_experts, parameter_of
from pat.pruning.calibration.calls import OTHERWISE, NotCalibrated
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


def is_of_no_token(values: Tensor, given: Collection[int]) -> bool:
    """Whether it is what the layer was given besides its hidden states (see Call.given): one input for all sequences,
    such as the embeddings of DeBERTa's relative positions, which its queries and keys are computed of, too."""
    return values.untyped_storage().data_ptr() in given


def per_own_token(seen: Seen, values: Tensor, real: Tensor) -> Tensor:
    """`per_token` of what one expert sees, (S, width)."""
    if seen.num_tokens != len(real):
        raise not_a_map(seen.name)
    return values[real[seen.tokens]]


def not_a_map(name: str) -> NotCalibrated:
    """For a matrix that is not applied to each token once, or gives something else than its product."""
    return NotCalibrated(
        f"{parameter_of(name)} is no linear map of each token (a router, or of other inputs than the layer's tokens): "
        f"exclude it (pruners.NAME.exclude), or {OTHERWISE}"
    )


class Probe:
    """Between `next` and the end of a forward, or Enough, every micro-batch adds to the sums.

    A matrix that is also applied to rows of no token has the mean over its tokens plus that over these rows: what it
    gives of either counts as much in what the layer computes.
    """

    def __init__(
        self,
        statistics: Statistics,
        to_the_end: bool,  # whether somebody wants the rest of the forward, too
    ) -> None:
        self.statistics = statistics
        self.to_the_end = to_the_end
        self.sums: dict[str, dict[type[InputStatistic], Tensor]] = {}  # by the first matrix that reads an input
        self.first: dict[str, str] = {}  # which that is, by matrix
        self.more: dict[str, dict[type[InputStatistic], Tensor]] = {}  # the sums over rows of no token,
        self.first_of_more: dict[str, str] = {}  # and as above
        self.num_rows: dict[str, int] = {}  # how many they are
        self.order: list[str] = []  # in which the first micro-batch came to the matrices
        self.handles: list[Any] = []

    def watch(self, path: str, module: nn.Module, names: Sequence[str]) -> None:
        """Sum up what goes into the linear maps of a module: one, or those of experts."""
        if are_experts(module):
            self.handles.append(Watched(module, path, self._see_expert))
        else:
            self.handles.append(module.register_forward_pre_hook(lambda _, args: self._see(names[0], args[0])))

    def next(self, real: Tensor, given: Collection[int] = ()) -> None:
        """A micro-batch begins, with these tokens (B, T) that are no padding, and Call.given."""
        once = len(self.order) == len(set(self.order)) == len(self.statistics)
        self.last = self.order[-1] if self.order and once and not self.to_the_end else None
        self.noting = not self.order
        self.real, self.given, self.seen = real.reshape(-1), given, list[tuple[Tensor, str]]()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def means(self, comm: Comm, tokens: int) -> dict[str, dict[type[InputStatistic], Tensor]]:
        """By matrix, over the tokens of all ranks, in the sums' own memory; matrices with the same inputs get the same
        ones. Collective. Raises NotCalibrated for a matrix that sees no token."""
        found = {name: _mean(comm, sums, tokens) for name, sums in self.sums.items()}
        rows = {name: int(comm.sum(torch.tensor(count))) for name, count in self.num_rows.items()}
        more = {name: _mean(comm, sums, rows[name]) for name, sums in self.more.items()}
        both: dict[tuple[str, str], dict[type[InputStatistic], Tensor]] = {}
        means: dict[str, dict[type[InputStatistic], Tensor]] = {}
        for name in self.statistics:
            if name not in self.first:
                raise not_a_map(name)
            means[name] = found[self.first[name]]
            if name in self.first_of_more:
                pair = self.first[name], self.first_of_more[name]
                if pair not in both:
                    both[pair] = {kind: value + more[pair[1]][kind] for kind, value in means[name].items()}
                means[name] = both[pair]
        return means

    def _see(self, name: str, inputs: Tensor) -> None:
        if self.noting:
            self.order.append(name)
        first = next((other for tensor, other in self.seen if tensor is inputs), name)
        of_tokens = not is_of_no_token(inputs, self.given)
        (self.first if of_tokens else self.first_of_more)[name] = first
        if first == name:
            self.seen.append((inputs, name))
            if of_tokens:
                self._add(self.sums, name, per_token(name, inputs, self.real))
            else:
                rows = inputs.reshape(-1, inputs.shape[-1])
                self.num_rows[name] = self.num_rows.get(name, 0) + len(rows)
                self._add(self.more, name, rows)
        if name == self.last:
            raise Enough

    def _see_expert(self, seen: Seen) -> None:
        if seen.name not in self.statistics:
            return
        if self.noting:
            self.order.append(seen.name)
        self.first[seen.name] = seen.name
        self._add(self.sums, seen.name, per_own_token(seen, seen.inputs, self.real))
        if seen.name == self.last:
            raise Enough

    def _add(self, sums: dict[str, dict[type[InputStatistic], Tensor]], name: str, flat: Tensor) -> None:
        own = sums.setdefault(name, {})
        for kind in self.statistics[name]:
            own[kind] = kind.add(own.get(kind), flat)


def _mean(comm: Comm, sums: Mapping[type[InputStatistic], Tensor], count: int) -> dict[type[InputStatistic], Tensor]:
    """The means over all ranks, in the sums' own memory. Collective."""
    return {kind: kind.completed(comm.sum_(value)).div_(count) for kind, value in sums.items()}
