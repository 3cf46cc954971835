"""`pat`, whose last evaluation raises: after the run's last step, as one that meets a broken sample would."""

from __future__ import annotations

import sys
from typing import Any

from pat import cli, train
from pat.tasks import base


def main() -> None:
    """The command line, with the fault."""
    plain, finish = base.Task.evaluate, train.finish

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("f1")

    def finish_with_fault(training: Any) -> None:
        base.Task.evaluate = broken  # type: ignore[method-assign]
        try:
            finish(training)
        finally:
            base.Task.evaluate = plain  # type: ignore[method-assign]

    train.finish = finish_with_fault
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
