"""A rank's main: `python -m pat.worker RUN_DIR`, started by `pat.launch`."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from pat.common.imports import no_collector
from pat.launch.environment import rank_environment
from pat.launch.rank import run_rank
from pat.run import directory


def main() -> None:
    """Entry of `python -m pat.worker RUN_DIR`, started by `pat.launch.single_node`."""
    environment = rank_environment()
    if environment is None or len(sys.argv) != 2:
        raise SystemExit("pat.worker is started by `pat train` with one run directory; use `pat train`")
    run_dir = Path(sys.argv[1])

    def work(path: Path) -> int:
        with no_collector():
            from pat import train
            from pat.config.frozen import load
            from pat.training import preflight  # heavy: after the signal handlers and the record are in place
        gc.freeze()  # what was imported stays, so no later collection looks through it

        if "PAT_HOST" in os.environ:  # one of several machines: it may have caches of its own
            preflight.prepare(load(directory.RunDir(path).config), path)
        return train.main(path)

    code = run_rank(run_dir, environment.rank, work)
    sys.stdout.flush()
    # Not through interpreter shutdown: a collective's or a logger's thread must not keep a finished rank alive.
    # The launcher must see success, or it would end the others during their last save.
    os._exit(0 if code.agreed else int(code))


if __name__ == "__main__":
    main()
