"""The proofs that need ranks. One start runs many checks; the checks themselves are in the *_checks.py scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import core_checks, layout_checks, oracle_checks, parity_checks
from tests.distributed.ranks import run_ranks

PARITY = {2: ["movement", "magnitude", "n_of_m", "block", "soft_movement"], 4: ["movement", "magnitude", "n_of_m"]}
LAYOUTS = list(layout_checks.LAYOUTS)
ORACLE = ["movement", "magnitude", "matrix", "taylor", "soft_movement"]


@cache
def parity(world_size: int) -> dict[str, Any]:
    """Results on every layout."""
    return run_ranks("tests.distributed.parity_checks", world_size, *PARITY[world_size])


@cache
def core() -> dict[str, Any]:
    """Skipped steps, interruptions, pruner off."""
    return run_ranks("tests.distributed.core_checks", 2, "skipped", "interrupted", "plain", timeout_s=900)


@cache
def against_oracle() -> dict[str, Any]:
    """Step by step."""
    return run_ranks("tests.distributed.oracle_checks", 2, *ORACLE)


@pytest.mark.parametrize(("world_size", "kind"), [(n, kind) for n, kinds in PARITY.items() for kind in kinds])
def test_same_bits_on_every_zero_stage(world_size: int, kind: str) -> None:
    """Masks and weights at ZeRO 1, 2, 3, in sub-groups, with and without offload."""
    results = parity(world_size)[kind]
    assert set(results) == set(parity_checks.LAYOUTS)
    for key in ("masks", "weights"):
        assert len({r[key] for r in results.values()}) == 1, {name: r[key][:8] for name, r in results.items()}
    assert all(r["sparsity"] > 0.4 for r in results.values())
    if kind == "n_of_m":
        assert results["zero1"]["straddles"] and results["zero3"]["straddles"], "no group crosses a shard boundary"


def test_pruners_differ() -> None:
    """Equal hashes above are not equal because nothing happened."""
    assert len({parity(2)[kind]["zero2"]["masks"] for kind in PARITY[2]}) == len(PARITY[2])


@pytest.mark.parametrize("kind", ORACLE)
@pytest.mark.parametrize("layout", list(oracle_checks.LAYOUTS))
def test_equals_the_naive_implementation(kind: str, layout: str) -> None:
    """Masks identical, weights within 1e-6, the clipping norm within 1e-6, after every step."""
    steps = against_oracle()[kind][layout]
    assert all(equal for equal, _, _ in steps), [equal for equal, _, _ in steps]
    assert max(gap for _, gap, _ in steps) < 1e-6
    assert max(norm for _, _, norm in steps) < 1e-6


@pytest.mark.parametrize("layout", list(core_checks.EVERY))
def test_skipped_step_changes_nothing(layout: str) -> None:
    """One infinite loss in the dense, soft, final and hard step: no score, mask, weight or moment moves."""
    said = core()["skipped"][layout]
    assert said.pop("sparsity") == pytest.approx(0.8, abs=1e-4)
    assert said == {str(step): [True, []] for step in (1, 4, 8, 9)}


def test_interruption_changes_nothing() -> None:
    """Resumed in each phase on the same layout: bitwise the undisturbed run."""
    for case, (undisturbed, resumed) in core()["interrupted"].items():
        assert resumed == undisturbed, case


@pytest.mark.parametrize("layout", list(core_checks.EVERY))
def test_pruner_off_is_plain_deepspeed(layout: str) -> None:
    """Bit for bit, with the same param groups."""
    ours, theirs = core()["plain"][layout]
    assert ours == theirs


def test_every_layout_loads_every_layout(tmp_path: Path) -> None:
    """2 -> 2, 2 -> 1 and 2 -> 1 -> 2 ranks, ZeRO 0, 1, 2, 3 and sub-groups: bit-identical right after each load, and
    training then ends within twice the spread of three seeds of plain DeepSpeed."""
    first, second = tmp_path / "two", tmp_path / "one"
    every = ",".join(LAYOUTS)
    saved = run_ranks("tests.distributed.layout_checks", 2, "save", str(first))
    _assert_equal(saved, run_ranks("tests.distributed.layout_checks", 2, "load", str(first), every))
    _assert_equal(saved, run_ranks("tests.distributed.layout_checks", 1, "load", str(first), every, str(second)))
    _assert_equal(saved, run_ranks("tests.distributed.layout_checks", 2, "load", str(second), "zero2,zero3"))


def _assert_equal(saved: dict[str, Any], loaded: dict[str, Any]) -> None:
    assert set(loaded) == set(layout_checks.LAYOUTS)
    for source, points in loaded.items():
        for point, targets in points.items():
            for target, (found, *losses) in targets.items():
                expected = saved[source][point]
                different = [key for key in expected if expected[key] != found[key]]
                assert not different, f"{source} -> {target}, {point}: {different}"
                assert len(losses) == (point == "soft")
                for loss in losses:
                    gap = abs(loss - saved[source]["loss"])
                    assert gap <= 2 * saved["spread"], f"{source} -> {target}: the loss is off by {gap}"


def test_fault_at_every_write_of_a_checkpoint() -> None:
    """An error or a death at each write, whole or torn file: the checkpoint found after it is whole and right."""
    result = run_ranks("tests.distributed.fault_checks", 1)
    assert result["count"] >= 12
    assert {name for name, *_ in result["faults"]} == {
        "torch.save",
        "save_file",
        "os.fsync",
        "write_atomic",
        "os.replace",
    }
    for write, fault, torn, raised, step, right in result["faults"]:
        assert right and raised, (write, fault, torn, step)
        assert raised == "killed" or "No space left" in raised
