"""A run that is over says what it reached, and is not run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pat.common import files
from pat.run.directory import RunDir
from pat.schema import Config
from pat.training import preflight, summary
from tests.fake_run import write_checkpoint

SUMMARY: dict[str, Any] = {
    "step": 20,
    "sparsity": 0.9,
    "prunable_parameters": 1000,
    "metrics": {"accuracy": 0.75},
    "dense_metrics": {"accuracy": 0.8},
    "dense_step": 5,
}


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    directory = RunDir(tmp_path / "run")
    write_checkpoint(directory.checkpoints / "step-00000020", nn.Linear(4, 4), ranks=1, prune="-")
    files.write_json(directory.summary, SUMMARY)
    return directory


def config(num_steps: int = 20, resume: str = "auto") -> Config:
    return Config().changed(train__num_steps=num_steps, run__resume=resume)


def test_complete(finished: RunDir) -> None:
    assert preflight.is_complete(config(), finished.path)
    assert not preflight.is_complete(config(num_steps=21), finished.path)
    assert not preflight.is_complete(config(resume="never"), finished.path)


def test_not_complete_without_its_last_checkpoint(finished: RunDir) -> None:
    """Its weights are what the run was for: torn or gone, there is something left to do."""
    file = next((finished.checkpoints / "step-00000020" / "deepspeed").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    assert not preflight.is_complete(config(), finished.path)


def test_not_complete_without_summary(finished: RunDir) -> None:
    finished.summary.unlink()
    assert not preflight.is_complete(config(), finished.path)


def test_outcome(finished: RunDir) -> None:
    said = summary.outcome(finished)
    for words in (
        "90.00% of 1,000",
        "weights removed, accuracy 0.75\n",
        "\nbefore pruning began, after 5 of 20 steps: accuracy 0.8 (",
        f"pat export {finished.path} --out",
    ):
        assert words in said
    assert "0.75 (" not in said, "a model after five steps is not what the result compares with"


def test_outcome_without_steps_names_no_checkpoint_that_pat_prune_removes(finished: RunDir) -> None:
    files.write_json(finished.summary, SUMMARY | {"step": 0, "dense_step": 0})
    said = summary.outcome(finished)
    assert said.endswith(summary.PRUNED) and f"pat export {finished.path}" not in said
