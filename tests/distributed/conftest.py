from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import runs


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A run directory that the first of the processes that run tests makes, for all of them."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            make(folder / "run")
            (folder / "made").touch()
    return folder / "run"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a parity run that nobody disturbs."""
    return runs.result(once(tmp_path_factory, "undisturbed", runs.reference))


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop in its dense phase. Not to be changed: copy it."""
    return once(
        tmp_path_factory,
        "stopped",
        lambda run_dir: runs.preempted(run_dir, "rank 0", signal.SIGUSR1, 2, launched=False),
    )
