"""An envelope in the loop of `pat train`: what is broken is undone to the bit, and a kill changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pat.common.files import read_json
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
START, STEPS = 6, 20  # tests/distributed/guard_checks.py


@cache
def ran(ranks: int, *arguments: str) -> dict[str, Any]:
    return run_ranks("tests.distributed.guard_checks", ranks, *arguments, timeout_s=900)


def went_back(found: dict[str, Any]) -> dict[str, Any]:
    """What holds of every run that goes back: the masks at its end are those of the good checkpoint, and nothing that
    was undone is left. Returns its envelope."""
    result, masks = found["result"], found["masks"]
    said, clock = result["summary"]["envelope"], result["manifest"]["clock"]
    stop = clock["stopped"]
    assert result["hashes"][0] == masks[str(stop if stop > START else STEPS)]
    assert result["summary"]["phase"] == "hard" and result["summary"]["step"] == STEPS
    assert result["summary"]["sparsity"] == said["allowed_sparsity"] < said["asked_sparsity"]
    assert said["further"]["sparsity"] > said["allowed_sparsity"] and said["further"]["metrics"] == {"loss": 2.0}
    assert said["further"]["undone"] and said["went_back_from"] == said["further"]["step"] > stop
    assert result["names"]["latest"] == result["names"]["good"] == f"step-{STEPS:08d}"
    assert result["lines"] == STEPS // 5, "each logged step is there once"
    return said


def test_a_broken_envelope_is_mended_by_the_masks_of_the_last_good_checkpoint() -> None:
    """A pause first, in which nothing is cut; then back, and hard from there on."""
    (found,) = ran(1, "back", "weights", "2").values()
    said = went_back(found)
    assert said["holds"] == 1 and said["inside"] and found["result"]["manifest"]["clock"]["pauses"] == []
    held = [one for one in said["evaluations"] if one.get("undone")]
    assert len(held) == 2 and held[0]["sparsity"] == held[1]["sparsity"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "gates"])
@pytest.mark.parametrize("way", ["back", "end", "nothing"])
def test_masks_and_gates_go_back_from_every_phase(way: str, kind: str) -> None:
    """While the ramp is held; from the last step, when hooks and dense weights are gone; to the dense model."""
    said = went_back(ran(1, "back,end,nothing", "weights,gates", "2")[f"{way}-{kind}-2"])
    assert (said["allowed_sparsity"] == 0.0) == (way == "nothing")
    assert (said["went_back_from"] == STEPS) >= (way == "end")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["back", "end"])
@pytest.mark.parametrize("kind", ["weights", "gates"])
def test_two_ranks_decide_the_same_at_zero_2_and_3(way: str, kind: str) -> None:
    found = ran(2, "back,end", "weights,gates", "2,3")
    two, three = (found[f"{way}-{kind}-{stage}"] for stage in (2, 3))
    went_back(two)
    assert two["result"]["hashes"] == three["result"]["hashes"] and two["masks"] == three["masks"]
    assert two["result"]["summary"] == three["result"]["summary"]


@pytest.mark.slow
def test_a_slice_holds_the_ramp_of_two_ranks_which_then_goes_on_to_the_end() -> None:
    """Nothing is undone, no mask changes while it is held, and all that was asked for goes; at ZeRO 2 and 3 alike."""
    two, three = (ran(2, "heals", "weights", "2,3")[f"heals-weights-{stage}"] for stage in (2, 3))
    assert two["result"]["hashes"] == three["result"]["hashes"] and two["masks"] == three["masks"]
    said, clock = two["result"]["summary"]["envelope"], two["result"]["manifest"]["clock"]
    assert said["holds"] == 1 and said["inside"] and said["went_back_from"] is None and said["further"] is None
    assert said["allowed_sparsity"] == said["asked_sparsity"] == two["result"]["summary"]["sparsity"]
    assert len(clock["pauses"]) == 1 and clock["stopped"] is None
    (held,) = (one for one in said["evaluations"] if not one["inside"])
    assert list(held["outside"]) == ["loss[domain=law]"] and len(held["limits"]) == 4, "the loss, and three slices"
    masks = [two["masks"][str(held["step"] + later)] for later in (0, 2, 4)]
    assert masks[0] == masks[1] != masks[2]


@pytest.mark.slow
def test_a_kill_at_any_write_of_going_back_ends_in_the_same_bits() -> None:
    """Before and after each: the name `latest`, each name and each checkpoint that is undone, metrics.jsonl, and the
    manifest that says where it was stopped; and those of the save of the last good checkpoint."""
    found = ran(1, "killed", "1")
    went_back({"result": found["plain"], "masks": found["masks"]})
    assert len(found["killed"]) >= 10
    for number, result in found["killed"].items():
        for key, value in found["plain"].items():
            assert result[key] == value, (number, key)


@pytest.mark.slow
def test_a_model_that_does_not_heal_goes_back(tmp_path: Path) -> None:
    """Nothing is in the place of the loss: 97.5 % of a trained model's layers are more than 30 steps heal, 94.4 % are
    not. What was undone is in the summary, and the model at the end is inside."""
    ramp = "pruners.weights.schedule={start: 120, end: 180, hard_from: 180, select_every: 10}"
    keys = ["train.num_steps=240", "train.eval_every=10", "train.checkpoint_every=10", "envelope.loss.rise=0.08"]
    command = ["recipe=parity", "logger=none", f"run.dir={tmp_path / 'run'}", "engine.world_size=1"]
    command += [*keys, ramp, "pruners.weights.budget.sparsity=0.98"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "pat.cli", "train", *command], env=environment, check=True, timeout=600)
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary and summary["step"] == 240 and summary["phase"] == "hard"
    said, limit = summary["envelope"], summary["dense_metrics"]["loss"] + 0.08
    assert said["inside"] and summary["metrics"]["loss"] <= limit < said["further"]["metrics"]["loss"]
    assert summary["sparsity"] == said["allowed_sparsity"] < said["further"]["sparsity"] < said["asked_sparsity"]
    assert said["holds"] >= 1 and said["went_back_from"] == said["further"]["step"] and said["further"]["undone"]
