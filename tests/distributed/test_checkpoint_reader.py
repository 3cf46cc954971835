"""What DeepSpeed itself saves, in every layout, against what the live engine held."""

from __future__ import annotations

import pytest
import torch

from pat.checkpoint.reader import CheckpointReader
from tests.distributed import cpu_adam_checks
from tests.distributed.ranks import run_ranks
from tests.distributed.write_checkpoints import LAYOUTS

COMPILED = ["zero2_cpu_adam"]
BUILT = [name for name in LAYOUTS if name not in COMPILED]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("layouts")
    run_ranks("tests.distributed.write_checkpoints", 2, str(out), *BUILT)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("layout", BUILT)
def test_reader_equals_the_live_engine(folder, layout):
    check(folder / layout)


@pytest.mark.slow
def test_reader_equals_the_live_engine_with_deepspeeds_adam(tmp_path):
    run_ranks("tests.distributed.write_checkpoints", 2, str(tmp_path), *COMPILED, timeout_s=1500)  # it compiles an op
    for name in COMPILED:
        check(tmp_path / name)


@pytest.mark.slow
def test_deepspeeds_cpu_adam_steps_with_a_pruner():
    """Pruned weights and their moments are exactly 0; masks and weights are torch AdamW's, up to rounding."""
    said = run_ranks("tests.distributed.cpu_adam_checks", 2, timeout_s=1500)
    assert said.keys() == cpu_adam_checks.PAIRS.keys()
    for layout, found in said.items():
        assert found["cpu_adam"]["class"] == "DeepSpeedCPUAdam" and found["adamw"]["class"] == "AdamW", layout
        for one in (found["cpu_adam"], found["adamw"]):
            dead = {kind: count for kind, count in one["alive"].items() if not kind.endswith("kept")}
            assert not any(dead.values()), (layout, one)
            assert one["alive"]["exp_avg kept"] > 0 and one["sparsity"] == pytest.approx(0.8, abs=1e-4)
        assert found["same"] > 0.995 and found["gap"] < 5e-3, (
            layout,
            found["same"],
            found["gap"],
        )  # a step of the rate


def check(step_dir):
    reader, truth = CheckpointReader(step_dir), torch.load(step_dir / "truth.pt")
    trainable = {name for name, p in reader.parameters.items() if p["trainable"]}
    assert trainable == set(truth["fp32"])
    for name, weight in truth["fp32"].items():
        assert torch.equal(reader.weight(name), weight), name
    for name, value in truth["frozen"].items():
        assert torch.equal(reader.frozen(name), value), name
    for (name, start), state in truth["adam"].items():
        for kind in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(reader.read(kind, name, start, len(state[kind])), state[kind]), (name, kind)
            assert state[kind].count_nonzero()
        assert reader.optimizer_step(name) == state["step"]
    assert reader.buffers() == ["scale"]


@pytest.mark.slow
def test_zero_1_and_2_hold_the_same(folder):
    first, second = CheckpointReader(folder / "zero1_bf16"), CheckpointReader(folder / "zero2_bf16")
    for name, parameter in first.parameters.items():
        if parameter["trainable"]:
            for kind in ("weight", "exp_avg", "exp_avg_sq"):
                assert torch.equal(first.read(kind, name), second.read(kind, name)), name
