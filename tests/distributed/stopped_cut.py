"""`pat`, one rank of which is asked to stop in the middle of a cut, after its first layer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from pat import cli
from pat.training import setup


def main() -> None:
    """The command line, with the request."""
    plain = setup._calibrating

    def with_request(training: Any) -> Callable[[int, int], None]:
        on_layer = plain(training)

        def asked(index: int, number: int) -> None:
            if index == 1 and training.world.rank == 1:
                training.flag.signal = signal.SIGTERM
            on_layer(index, number)

        return asked

    setup._calibrating = with_request
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
