"""A cut of two ranks that is stopped between two layers goes on there, and ends with the bits of one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pat.run.directory import ExitCode, RunDir
from tests.distributed import ranks, runs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ALPS = {
    "criterion.name": "alps",
    "criterion.num_samples": 16,
    "criterion.reconstruct": 1,
    "criterion.gradient_samples": 8,
}
AT_STEP_1 = {"name": "one_shot", "start": 1, "end": "null", "hard_from": 1, "select_every": 1}
KEYS = [
    "recipe=parity", "logger=none", "engine.kernels=eager", "train.num_steps=2", "train.checkpoint_every=1",
    *(f"pruners.weights.{key}={value}" for key, value in ALPS.items()),
    *(f"pruners.weights.schedule.{key}={value}" for key, value in AT_STEP_1.items()),
]  # fmt: skip


def start(module: str, run_dir: Path) -> tuple[int, str]:
    logs = [run_dir.with_name(f"{run_dir.name}-{rank}") for rank in range(2)]
    code = ranks.Together(ranks.fork_ranks(module, ["train", *KEYS, f"run.dir={run_dir}"], logs)).wait(900)
    return code, "".join(log.read_text(errors="replace") for log in logs)


def result(run_dir: Path) -> dict[str, Any]:
    summary = json.loads(RunDir(run_dir).summary.read_text())
    return {key: summary[key] for key in ("sparsity", "mask_sha256", "weights_sha256", "metrics")}


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    code, said = start("tests.distributed.stopped_cut", tmp_path / "run")
    assert code == ExitCode.PREEMPTED and "stopped on request in the cut at step 1, after 1 of 2 layers" in said, said
    folder = RunDir(tmp_path / "run").calibration
    kept = sorted(path.name for path in folder.rglob("*.safetensors"))
    assert kept == ["gradients.safetensors", "layer-00000.safetensors"] and runs.latest(folder.parent) == 1
    code, said = start("pat.cli", tmp_path / "run")
    assert code == ExitCode.DONE and "1 of 2 layers of an earlier start's cut are taken over" in said, said
    assert "gradients of an earlier start's cut are taken over" in said and "taking the loss's gradients" not in said
    assert not folder.exists()
    code, said = start("pat.cli", tmp_path / "undisturbed")
    assert code == ExitCode.DONE and "taken over" not in said, said
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")
