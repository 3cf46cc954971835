"""Which tests share a process when several run tests at once (`--dist=loadfile`): those of a file, as ever; and in the
quick set all that fork ranks, for two ranks fill two cores, and what they are forked from is imported once.
"""

from __future__ import annotations

from typing import Any

import pytest

FORKS = ("tests/distributed/", "tests/recipes/")
LAUNCHES = (
    "tests/distributed/test_launcher.py",
    "tests/distributed/test_starts.py",
)  # processes of their own, and waits


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By file, but for what forks ranks. The slow set waits too often to run that one after another."""
    if config.getvalue("dist") != "loadfile" or config.option.markexpr != "not slow":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            forks = nodeid.startswith(FORKS) and not nodeid.startswith(LAUNCHES)
            return "ranks" if forks else super()._split_scope(nodeid)

    return Scheduling(config, log)
