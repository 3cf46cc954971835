"""A request to stop, to the command or to any rank, while it trains or evaluates: saved, exit code 85, and no bit lost.

And what is saved goes on with another number of ranks and another ZeRO stage.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pat.run.directory import ExitCode
from tests.distributed import runs
from tests.distributed.runs import Start, preempted

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.real_processes]


def while_evaluating(run_dir: Path, who: str, number: int, step: int) -> None:
    """Ask for the end in the evaluation of a step, which is over in a second: again where the signal came too late."""
    before = run_dir.with_name("before")
    shutil.copytree(run_dir, before)
    for _ in range(3):
        preempted(run_dir, who, number, step)
        if runs.latest(run_dir) == step and step not in runs.curve(run_dir)["eval/loss"]:
            shutil.rmtree(before)
            return
        shutil.rmtree(run_dir)
        shutil.copytree(before, run_dir)
    raise AssertionError(f"no signal interrupted the evaluation of step {step}")


def test_four_requests_to_stop(stopped: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    preempted(run_dir, "rank 1", signal.SIGTERM, runs.latest(run_dir) + 2, launched=False)
    for who, number, step in (("parent", signal.SIGTERM, 10), ("rank 0", signal.SIGUSR1, 20)):
        while_evaluating(run_dir, who, number, step)
    start = Start(run_dir, launched=False)
    assert start.end() == ExitCode.DONE, start.text()
    assert runs.result(run_dir) == undisturbed


def test_other_ranks_and_stages(stopped: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    step = runs.latest(run_dir)
    one = ("engine.world_size=1", "engine.zero_stage=3")
    start = preempted(run_dir, "rank 0", signal.SIGTERM, 12, *one, ranks=1, launched=False)
    assert f"resumed at step {step} from 2 ranks at ZeRO 2" in start.text()
    step = runs.latest(run_dir)
    start = Start(run_dir, "engine.zero_stage=1", launched=False)
    assert start.end() == ExitCode.DONE, start.text()
    assert f"resumed at step {step} from 1 rank at ZeRO 3" in start.text()
    found = runs.result(run_dir)
    for key in ("step", "phase", "sparsity"):
        assert found[key] == undisturbed[key]
    assert found["metrics"]["loss"] == pytest.approx(undisturbed["metrics"]["loss"], rel=0.02)
