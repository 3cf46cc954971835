"""An evaluation that fails costs nothing of a finished training: the last checkpoint is there before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pat.checkpoint import retention
from pat.checkpoint.reader import read_manifest
from pat.run.directory import ExitCode, RunDir, read_exit
from tests.distributed import ranks
from tests.distributed.test_starts import SHORT

pytestmark = pytest.mark.distributed


def start(module: str, folder: Path) -> tuple[int | None, str]:
    log = folder / "output"
    few = ["engine.world_size=1", "engine.kernels=eager", "train.eval_every=null", "train.checkpoint_every=null"]
    command = ["train", *SHORT, *few, f"run.dir={folder / 'run'}"]
    (code,) = ranks.exit_codes(ranks.fork_ranks(module, command, [log]), 900)
    return code, log.read_text(errors="replace")


def test_the_last_checkpoint_is_saved_before_the_last_evaluation(tmp_path: Path) -> None:
    _fails(tmp_path)


def _fails(tmp_path: Path) -> tuple[RunDir, Path]:
    """A run whose last evaluation has failed, and its checkpoint."""
    code, said = start("tests.distributed.failing_evaluation", tmp_path)
    directory = RunDir(tmp_path / "run")
    assert code == ExitCode.ERROR, said
    message = (read_exit(directory.path) or {})["message"]
    assert "the training up to step 3 is saved in" in message and "KeyError: 'f1'" in message, message
    (saved,) = retention.steps(directory.checkpoints)
    assert saved.name == "step-00000003" and not directory.summary.exists()
    return directory, saved


@pytest.mark.slow
def test_the_next_start_only_evaluates(tmp_path: Path) -> None:
    directory, saved = _fails(tmp_path)
    code, said = start("pat.cli", tmp_path)
    assert code == 0, said
    summary = json.loads(directory.summary.read_text())
    assert summary["step"] == 3 and summary["metrics"]["loss"] > 0
    assert summary["skipped_steps"] == 0 and summary["max_loss"] == pytest.approx(3 * summary["initial_loss"], rel=0.1)
    assert read_manifest(saved)["metrics"] == summary["metrics"], "the checkpoint says what it is worth"
    assert (directory.checkpoints / "best").read_text() == saved.name
    assert "resumed at step 3" in said
