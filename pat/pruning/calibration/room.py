"""Memory for what each rank does by itself between two collectives."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pat.common.comm import Comm
from pat.pruning.calibration.calls import NotCalibrated
from pat.pruning.calibration.needs import is_out_of_memory

T = TypeVar("T")


@dataclass
class Room:
    """Where one rank has no memory for its work, all ranks raise NotCalibrated together: the others would wait."""

    comm: Comm
    sentence: Callable[[], str]  # what to say then
    said: list[str] = field(default_factory=list[str])

    def attempt(self, work: Callable[[], T]) -> list[T]:
        """[what the work gives]; [] where this rank has no memory for it, which the next `given` tells."""
        try:
            return [work()]
        except (MemoryError, RuntimeError) as error:  # not raised here: the other ranks wait for this one
            if not is_out_of_memory(error):
                raise
            asked = re.search(r"(?i:tried to allocate) ([\d.]+ \w+)", str(error))
            self.said.append(self.sentence() + (f" (it asked for {asked[1]})" if asked else ""))
            return []

    def given(self, work: Callable[[], T]) -> T:
        """What the work gives, if no rank has been without memory. Collective."""
        made = self.attempt(work)
        self.check()
        return made[0]

    def check(self) -> None:
        """Raise NotCalibrated on all ranks where one has been without memory. Collective."""
        refused = [sentence for each in self.comm.gather(list(self.said)) for sentence in each]
        if refused:
            raise NotCalibrated(refused[0])
