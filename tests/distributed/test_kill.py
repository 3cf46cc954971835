"""Real SIGKILLs: the same command goes on by itself and ends with the same bits; a torn checkpoint is never read."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from pat.checkpoint import retention
from pat.run.directory import ExitCode, RunDir
from tests.distributed import runs
from tests.distributed.runs import Start

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.real_processes]

GONE_S = 60.0  # on a quiet machine: a second, or 15 where a rank waits for one that was killed
RUNNING = [("parent", 3), ("launcher", 7), ("rank 1", 12)]
SAVING = ["rank 0", "rank 1"]
EACH_STEP = "train.checkpoint_every=1"


def killed(run_dir: Path, who: str, step: int, saving: bool) -> bool:
    """Start, kill and wait until nobody is left; whether it hit a save that is now torn."""
    before = runs.latest(run_dir)
    start = Start(run_dir, *[EACH_STEP] * saving, launched=not saving)
    start.until_step(step)
    if saving:
        start.until_saving()
    start.send(who, signal.SIGKILL)
    assert start.nobody_left(GONE_S), f"{who} was killed, and left alive: {start.everyone}"
    assert before == 0 or f"resumed at step {before} " in start.text(), start.text()
    assert runs.latest(run_dir) >= before
    return bool(start.partial())


def test_five_kills_and_a_torn_checkpoint(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    run_dir = tmp_path / "run"
    root = run_dir / "checkpoints"
    for who, step in RUNNING:
        killed(run_dir, who, step, saving=False)
        assert who == "rank 1" or runs.latest(run_dir) >= step, "the ranks could still save, so they should"
    for who in SAVING:
        tries = [killed(run_dir, who, runs.latest(run_dir) + 2, saving=True)]
        while not tries[-1] and len(tries) < 3:  # the save was over before the signal came
            tries.append(killed(run_dir, who, runs.latest(run_dir) + 1, saving=True))
        assert tries[-1], "no kill hit a save"

    *_, older, newest = retention.steps(root)
    assert newest.name == f"step-{runs.latest(run_dir):08d}"
    torn = runs.tear(newest)
    start = Start(run_dir, launched=False)
    assert start.end() == ExitCode.DONE, start.text()
    assert f"checkpoint {newest.name} is not whole" in start.text() and torn.name in start.text()
    assert f"resumed at step {int(older.name[5:])} " in start.text()
    assert runs.result(run_dir) == undisturbed
    assert not list(root.glob("*.partial")) and not list(root.glob("*.replaced"))
    start = Start(run_dir)
    assert start.process.wait(GONE_S) == ExitCode.DONE and "nothing is left to do" in start.text(), start.text()
    for file in (RunDir(run_dir).summary, RunDir(run_dir).exit):  # as if killed after the last checkpoint
        file.unlink()
    start = Start(run_dir, launched=False)
    assert start.end() == ExitCode.DONE, start.text()
    assert runs.result(run_dir) == undisturbed, "no step is evaluated or logged twice"

    for path in retention.steps(root):
        runs.tear(path)
    start = Start(run_dir)
    assert start.end() == ExitCode.BROKEN_PROMISE, start.text()
    last = start.text().splitlines()[-1]
    assert last.startswith("pat: none of the ") and "run.resume=never" in last and "Traceback" not in start.text()
