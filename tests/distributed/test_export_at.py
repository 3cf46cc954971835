"""train.export_at: a checkpoint of the step that first reached each sparsity, the same after a stop, and exportable."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from pat.common.files import read_json
from pat.export.export import export_run
from pat.run.directory import RunDir
from tests.distributed import runs
from tests.distributed.runs import Start, preempted

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.real_processes]

# Masks are chosen at steps 5, 10, 15 and 20: 0, 0.563, 0.770 and 0.8 of the weights go. Both 0.3 and 0.5 are reached at
# once, 0.7 later; with keep_last=1 nothing but the names keeps those checkpoints.
AT = (
    "train.export_at=[0.3,0.5,0.7]",
    "train.keep_last=1",
    "train.eval_every=null",
    "train.checkpoint_every=5",
    "train.num_steps=60",  # some seconds in which to stop it
)


def variants(run_dir: Path) -> dict[str, Any]:
    """What is exported from each name."""
    found = {}
    for value in ("0.3", "0.5", "0.7"):
        result = export_run(run_dir, run_dir.parent / f"{run_dir.name}-{value}", f"sparsity={value}", verify="weights")
        kept = ("sparsity", "mask_sha256", "weights_sha256")
        found[value] = {key: result[key] for key in kept} | {"step": result["lineage"]["step"]}
        assert result["lineage"]["metrics"], "a variant says what it is worth"
    return found


def test_variants_of_one_run_survive_retention_and_a_stop(tmp_path: Path) -> None:
    one = Start(tmp_path / "one", *AT, launched=False)
    assert one.end() == 0, one.text()
    found = variants(tmp_path / "one")
    counted = {line["step"]: line["pruning/sparsity"] for line in runs.losses(tmp_path / "one")}
    for value, variant in found.items():
        first = min(step for step, sparsity in counted.items() if sparsity >= float(value))
        assert variant["step"] == first and variant["sparsity"] == counted[first], (value, variant, counted)
    assert found["0.3"] == found["0.5"] != found["0.7"]
    assert (read_json(RunDir(tmp_path / "one").summary) or {})["reached"] == {v: f["step"] for v, f in found.items()}
    assert "--checkpoint sparsity=0.3" in one.text()

    preempted(tmp_path / "two", "rank 1", signal.SIGUSR1, found["0.3"]["step"] + 1, *AT, launched=False)
    two = Start(tmp_path / "two", *AT, launched=False)
    assert two.end() == 0, two.text()
    assert variants(tmp_path / "two") == found
