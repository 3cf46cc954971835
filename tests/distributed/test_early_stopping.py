"""A run that no longer gets better ends by itself, with all that it promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.runs import PARITY

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
# A learning rate that moves no bf16 weight: in the hard phase each evaluation is as good as the last.
OVERRIDES = ["train.num_steps=60", "train.eval_every=2", "train.checkpoint_every=null", "optim.lr=1e-12"]
OVERRIDES += ["train.early_stopping_patience=2", "data.max_eval_samples=8", "train.log_every=10"]


def started(folder: Path) -> tuple[str, dict[str, object]]:
    log = folder / "output"
    command = ["train", *PARITY, *OVERRIDES, f"run.dir={folder / 'run'}"]
    logs = [log, folder / "other"]
    codes = ranks.exit_codes(ranks.fork_ranks("pat.cli", command, logs, cwd=folder), 600)
    said = log.read_text(errors="replace")
    assert codes == [0, 0], said[-4000:]
    return said, json.loads((folder / "run" / "summary.json").read_text())


def test_patience_ends_a_run_in_its_hard_phase_and_the_same_command_leaves_it_ended(tmp_path: Path) -> None:
    """Would catch: evaluations of the soft phase counted, an end without exact sparsity or without a checkpoint, and a
    start that trains on after the decision."""
    said, summary = started(tmp_path)
    # Hard from step 20 on: the model after it is the best, those after steps 22 and 24 are not better.
    assert summary["step"] in (24, 26) and summary["stopped_early"] and "stopped early" in said
    assert summary["phase"] == "hard" and summary["sparsity"] == summary["target_sparsity"]
    last = tmp_path / "run" / "checkpoints" / f"step-{summary['step']:08d}"
    assert (last / "manifest.json").is_file()
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed just before
    again, found = started(tmp_path)
    assert f"resumed at step {summary['step']}" in again
    assert {key: found[key] for key in ("step", "weights_sha256", "mask_sha256", "metrics", "stopped_early")} == {
        key: summary[key] for key in ("step", "weights_sha256", "mask_sha256", "metrics", "stopped_early")
    }
