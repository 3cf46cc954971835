"""Hidden states between two layers, by micro-batch: they wait in the host's memory, not in the accelerator's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

HOST = torch.device("cpu")


class HiddenStates:
    """A list of tensors. Each is brought back to the device that it came from when it is read; where that is the host,
    nothing is copied, so what is read is not to be changed in place."""

    def __init__(self, states: Iterable[Tensor] = ()) -> None:
        self._kept: list[Tensor] = []
        self._devices: list[torch.device] = []
        for each in states:
            self.append(each)

    def copy(self) -> HiddenStates:
        """Another list of the same states."""
        other = HiddenStates()
        other._kept, other._devices = list(self._kept), list(self._devices)
        return other

    def append(self, states: Tensor) -> None:
        """One more micro-batch."""
        self._devices.append(states.device)
        self._kept.append(states.to(HOST))

    @property
    def on_host(self) -> list[Tensor]:
        """All of them where they wait."""
        return list(self._kept)

    @property
    def nbytes(self) -> int:
        """Of all micro-batches."""
        return sum(states.nbytes for states in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Tensor:
        return self._kept[place].to(self._devices[place])

    def __setitem__(self, place: int, states: Tensor) -> None:
        self._kept[place], self._devices[place] = states.to(HOST), states.device
