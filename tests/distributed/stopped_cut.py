"""`pat`, one rank of which is asked to stop in the middle of a cut, after its first layer."""

from __future__ import annotations

import signal
import sys

from pat import cli
from pat.training import setup
from pat.training.calibrating import Calibrating


class Asked(Calibrating):
    """Rank 1 is asked to stop before the second layer."""

    def on_layer(self, index: int, number: int) -> None:
        """As ever, after the request."""
        if index == 1 and self.training.world.rank == 1:
            self.training.flag.signal = signal.SIGTERM
        super().on_layer(index, number)


def main() -> None:
    """The command line, with the request."""
    setup.Calibrating = Asked
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
