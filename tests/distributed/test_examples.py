"""The examples run as they stand, and what they leave can be exported with half of the weights exactly zero."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from pat.integrations.hf import export_pruned
from tests.distributed.ranks import run_ranks


@pytest.mark.distributed
@pytest.mark.slow
def test_examples(tmp_path: Path) -> None:
    run_ranks("tests.distributed.example_checks", 2, str(tmp_path))
    for trained in (tmp_path / "bare", tmp_path / "accelerate" / "step-20", tmp_path / "hf" / "checkpoint-20"):
        out = tmp_path / f"{trained.parent.name}-{trained.name}-pruned"
        found = export_pruned(trained, out)
        assert found["sparsity"] == 0.5 and found["lineage"]["phase"] == "hard" and found["lineage"]["step"] == 20
        matrices = [v for n, v in load_file(out / "model.safetensors").items() if "_proj" in n]
        zeros = sum(int((value == 0).sum()) for value in matrices)
        assert zeros >= found["pruned_parameters"] == sum(value.numel() for value in matrices) // 2
