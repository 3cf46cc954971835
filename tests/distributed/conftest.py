from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import runs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a parity run that nobody disturbs."""
    folder: Path = tmp_path_factory.mktemp("undisturbed")
    return runs.reference(folder / "run")


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop in its dense phase. Not to be changed: copy it."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    runs.preempted(run_dir, "parent", signal.SIGUSR1, 2)
    return run_dir
