"""The disk fills up while a checkpoint is written; and a run that explodes. Both keep the last good checkpoint."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pat.checkpoint import retention
from pat.checkpoint.reader import CheckpointReader
from pat.run.directory import ExitCode, write_exit
from tests.distributed import runs
from tests.distributed.runs import Start

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SMALL, LARGE = "size=5m", "size=64m"  # two checkpoints and a half; all that a run needs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", SMALL, "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system can only be mounted by root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk(small_disk: Path, undisturbed: dict[str, Any]) -> None:
    run_dir = small_disk / "run"
    start = Start(run_dir, "train.checkpoint_every=4")
    assert start.end() == ExitCode.BROKEN_PROMISE, start.text()
    assert "Traceback" not in start.text()
    last = start.text().splitlines()[-1]
    assert last.startswith("pat: the checkpoint of step ") and "those before it are as they were" in last
    assert f"MiB were free in {run_dir}" in last
    root = run_dir / "checkpoints"
    for path in retention.steps(root):
        CheckpointReader(path)  # compares every hash
    step = runs.latest(run_dir)
    assert step >= 4 and not list(root.glob("*.partial"))

    subprocess.run(["mount", "-o", f"remount,{LARGE}", str(small_disk)], check=True)
    start = Start(run_dir, "train.checkpoint_every=4", launched=False)
    assert start.end() == ExitCode.DONE, start.text()
    assert f"resumed at step {step} " in start.text()
    assert runs.result(run_dir) == undisturbed


def test_an_exploding_run_keeps_its_last_good_checkpoint(stopped: Path, tmp_path: Path) -> None:
    """Noticed before the next checkpoint, though the next line is far: no second bad one pushes the good one out.

    By its loss, or, where that stays in bounds, by the steps that are skipped, none of which is saved; those between
    them are, as nothing tells them from good ones."""
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    write_exit(run_dir, ExitCode.DIVERGED)  # or another learning rate would be refused
    good = runs.latest(run_dir)
    often = ["train.checkpoint_every=1", "train.log_every=30", "engine.world_size=1"]
    start = Start(run_dir, "optim.lr=1e3", *often, ranks=1)
    assert start.end() == ExitCode.DIVERGED, start.text()
    last = start.text().splitlines()[-1]
    assert "lower optim.lr" in last and "Traceback" not in start.text()
    by_its_loss = f" at step {good + 2}," in last
    assert by_its_loss or "steps were skipped" in last, "the loss shows what the step before it has done"
    reader = CheckpointReader(retention.steps(run_dir / "checkpoints")[0])
    assert reader.manifest["step"] == good or not by_its_loss
    assert all(torch.isfinite(reader.read("weight", name)).all() for name in reader.parameters)
    assert not (run_dir / "summary.json").exists()


@pytest.mark.parametrize("saves", ["train.export_at=[0.3]", "train.eval_every=1"])
def test_no_save_takes_a_state_whose_loss_is_out_of_bounds(tmp_path: Path, saves: str) -> None:
    """Though the next line is far. Would catch: a variant, or a best checkpoint, of a run that has diverged."""
    keys = ["train.max_loss=0.1", "train.log_every=30", "train.checkpoint_every=null", "engine.world_size=1"]
    best = "pruners={}" if saves == "train.eval_every=1" else "train.eval_every=null"  # a dense model may be the best
    start = Start(tmp_path / "run", *keys, saves, best, ranks=1, launched=False)
    assert start.end() == ExitCode.DIVERGED, start.text()
    assert "above 0.1 (train.max_loss)" in start.text() and "begins again, for nothing has been saved" in start.text()
    assert not retention.steps(tmp_path / "run" / "checkpoints")
