from __future__ import annotations

import fcntl
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pat.launch import single_node
from pat.run.directory import read_exit
from pat.schema import Config
from tests.distributed import ranks, runs


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A run directory that the first of the processes that run tests makes, for all of them.

    A failure is tried once more here, in another folder: pytest keeps a fixture's exception, also when it runs a test
    again.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    folder.mkdir(exist_ok=True)
    made = folder / "made"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in (1, 0):
            if made.exists():
                break
            run_dir = Path(tempfile.mkdtemp(dir=folder)) / "run"
            try:
                make(run_dir)
                made.write_text(str(run_dir))
            except Exception:
                if not left:
                    raise
                traceback.print_exc()
    return Path(made.read_text())


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


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks without DeepSpeed's launcher, a third of the work; the slow set starts them as users do."""

    def launch(run_dir: Path, config: Config) -> int:
        logs = [run_dir.with_suffix(f".{rank}.out") for rank in range(config.engine.world_size)]
        codes = ranks.exit_codes(ranks.fork_ranks("pat.worker", [str(run_dir)], logs), 600)
        left = read_exit(run_dir)
        assert left is not None, (codes, logs[0].read_text(errors="replace")[-6000:])
        return left["code"]

    monkeypatch.setattr(single_node, "launch", launch)
