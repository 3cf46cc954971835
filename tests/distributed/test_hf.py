"""The pruner in HF Trainer, TRL and Accelerate is the pruner: same bits as our own loop, exact resume and export."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tests.distributed import hf_checks
from tests.distributed.ranks import run_ranks

QUICK = ["movement zero2"]
SFT = "movement zero2 in SFTTrainer"  # by TRL's own loss
SLOW = [name for name in hf_checks.CASES if name not in QUICK]


@cache
def results(*cases: str) -> Any:
    """What the ranks say of these cases."""
    return run_ranks("tests.distributed.hf_checks", 2, json.dumps(cases))


def check(said: dict[str, Any]) -> None:
    # Fails where the callback binds late, counts steps otherwise, mixes param groups or loses state.
    assert said["theirs"] == said["ours"]
    assert said["resumed"] == said["ours"]
    assert said["ours"]["sparsity"] == said["target"] > 0
    if "logged" in said:
        assert said["logged"][-1] == said["target"] and said["logged"][0] == 0.0


def exported(said: dict[str, Any]) -> dict[str, Any]:
    found = said["exported"]
    assert found["sparsity"] == said["target"] and found["mask_sha256"] == said["ours"]["masks"]
    return found


@pytest.mark.distributed
@pytest.mark.slow
def test_hf_trainer_with_the_callback_equals_our_loop_bit_for_bit() -> None:
    said = results(*QUICK)[QUICK[0]]
    check(said)
    found = exported(said)
    pruned = found["before"]["parameters"] - found["after"]["nonzero_parameters"]
    assert said["zeros"] >= pruned - 1 and pruned >= said["target"] * found["prunable_parameters"]


@pytest.mark.distributed
@pytest.mark.slow
def test_what_a_user_of_the_callback_gets_wrong_is_said() -> None:
    said = results(*QUICK)["refusals"]
    assert "was written with other pruners" in said["other pruner"]
    assert "is not whole" in said["torn"] and "sha256" in said["torn"]
    assert "load_best_model_at_end" in said["best"] and "set it to False" in said["best"]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in SLOW if name != SFT])
def test_other_layouts_gates_and_trainers_equal_our_loop_bit_for_bit(case: str) -> None:
    said = results(*SLOW)[case]
    check(said)
    found = exported(said)
    if case.startswith("l0"):  # what is gone is taken out
        assert found["after"]["parameters"] < found["before"]["parameters"]


@pytest.mark.distributed
@pytest.mark.slow
def test_trls_trainer_resumes_exactly_and_keeps_its_promise() -> None:
    """Its loss is of log-probabilities from a fused output layer, which round otherwise than the model's own loss, so
    weights differ in their last bits; nothing else may."""
    said = results(*SLOW)[SFT]
    assert said["resumed"] == said["theirs"]
    assert said["theirs"]["sparsity"] == said["logged"][-1] == said["target"]
    assert said["theirs"]["steps"] == said["ours"]["steps"] and said["theirs"]["decay"] == said["ours"]["decay"]
    assert said["exported"]["mask_sha256"] == said["theirs"]["masks"]
