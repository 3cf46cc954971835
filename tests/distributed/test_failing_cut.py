"""A cut that fails when it has cut a layer in memory leaves nothing of that behind, and the run goes on before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pat.checkpoint import retention
from pat.checkpoint.reader import CheckpointReader
from pat.run.directory import ExitCode, RunDir, read_exit
from tests.distributed import ranks

pytestmark = pytest.mark.distributed

AT_STEP_2 = {"name": "one_shot", "start": 2, "end": "null", "hard_from": 2, "select_every": 1}
KEYS = [
    "recipe=parity", "logger=none", "engine.kernels=eager", "engine.world_size=1", "train.num_steps=3",
    "train.checkpoint_every=1", "train.eval_every=null", "pruners.weights.criterion.name=wanda",
    "pruners.weights.criterion.num_samples=16", "pruners.weights.scope=row",
    *(f"pruners.weights.schedule.{key}={value}" for key, value in AT_STEP_2.items()),
]  # fmt: skip


def start(module: str, run_dir: Path) -> tuple[int | None, str]:
    log = run_dir.with_suffix(".log")
    (code,) = ranks.exit_codes(ranks.fork_ranks(module, ["train", *KEYS, f"run.dir={run_dir}"], [log]), 900)
    return code, log.read_text(errors="replace")


def fails(run_dir: Path) -> RunDir:
    """A run whose cut has failed."""
    code, said = start("tests.distributed.failing_cut", run_dir)
    assert code == ExitCode.BAD_INPUT, said
    message = (read_exit(run_dir) or {})["message"]
    assert message.startswith("model.layers.1.self_attn.q_proj.weight cannot be pruned by wanda: all inputs are 0")
    assert message in said
    return RunDir(run_dir)


def result(directory: RunDir) -> dict[str, Any]:
    summary = json.loads(directory.summary.read_text())
    return {key: summary[key] for key in ("sparsity", "mask_sha256", "weights_sha256", "metrics")}


def test_nothing_of_it_is_left(tmp_path: Path) -> None:
    """Would catch: a checkpoint, on the way out, of a model of which one layer is cut."""
    directory = fails(tmp_path / "run")
    saved = retention.steps(directory.checkpoints)
    assert saved[-1].name == "step-00000002" and not directory.summary.exists()
    assert {path.name for path in directory.checkpoints.glob("step-*")} == {path.name for path in saved}
    assert (directory.checkpoints / "latest").read_text() == saved[-1].name
    reader = CheckpointReader(saved[-1])  # compares every hash
    matrices = [name for name in reader.parameters if name.endswith("_proj.weight")]
    assert len(matrices) == 14 and all(bool(reader.read("weight", name).all()) for name in matrices)


@pytest.mark.slow
def test_the_next_start_ends_as_if_it_had_not_failed(tmp_path: Path) -> None:
    directory = fails(tmp_path / "run")
    code, said = start("pat.cli", directory.path)
    assert code == ExitCode.DONE and "resumed at step 2" in said, said
    assert "1 of 2 layers of an earlier start's cut are taken over" in said and not directory.calibration.exists()
    code, said = start("pat.cli", tmp_path / "undisturbed")
    assert code == ExitCode.DONE and "resumed" not in said, said
    assert result(directory) == result(RunDir(tmp_path / "undisturbed"))
