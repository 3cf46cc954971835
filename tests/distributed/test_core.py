"""The proofs that need ranks. One start runs many checks; the checks themselves are in the *_checks.py scripts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import core_checks, layout_checks, oracle_checks, parity_checks
from tests.distributed.ranks import run_ranks

# Also 4 ranks, 2:4 groups that a shard's boundary cuts, families whose stages round differently, and fp32, in which the
# reduction itself rounds (at 4 ranks in an order of its own at each stage).
PARITY = {
    2: ["movement", "magnitude", "n_of_m", "block", "soft_movement", "rows", "wanda", "alps", "experts"]
    + ["bert", "distilbert", "gpt2", "qwen2", "movement fp32", "bert fp32", *parity_checks.UNSHARDED],
    4: ["movement", "n_of_m", "bert", "alps"],
}


@cache
def parity(world_size: int, *kinds: str) -> dict[str, Any]:
    """Results on every layout."""
    return run_ranks("tests.distributed.parity_checks", world_size, *kinds, timeout_s=900)


@cache
def core(which: str) -> dict[str, Any]:
    """Skipped steps, interruptions, pruner off, on the layouts of the quick or the slow set; of the quick one all."""
    return run_ranks("tests.distributed.core_checks", 2, which, timeout_s=900)


def which(layout: str) -> str:
    """The set that a layout is in."""
    return "quick" if layout in core_checks.QUICK else "slow"


def quick_and_slow(quick: Any, slow: Any) -> list[Any]:
    """Parameters of a test, those of the slow set marked."""
    return [*quick, *(pytest.param(item, marks=pytest.mark.slow) for item in slow)]


on_every_layout = pytest.mark.parametrize("layout", quick_and_slow(core_checks.QUICK, core_checks.SLOW))


@cache
def against_oracle(which: str) -> dict[str, Any]:
    """Step by step."""
    return core(which)["oracle"] if which == "quick" else run_ranks("tests.distributed.oracle_checks", 2, which)


def test_same_bits_at_each_zero_stage() -> None:
    """Masks and weights, with DeepSpeed's keys and offload; the slow set adds other pruners and layouts."""
    _same_bits(core("quick")["parity"]["movement"], parity_checks.QUICK)


def _same_bits(results: dict[str, Any], layouts: Iterable[str], keys: Iterable[str] = ("masks", "weights")) -> None:
    assert set(results) == set(layouts)
    for key in keys:
        assert len({r[key] for r in results.values()}) == 1, {name: r[key][:8] for name, r in results.items()}
    assert all(r["sparsity"] > 0.4 for r in results.values())


@pytest.mark.slow
@pytest.mark.parametrize("case", [(n, kind) for n, kinds in PARITY.items() for kind in kinds])
def test_same_bits_on_every_zero_stage(case: tuple[int, str]) -> None:
    """Masks and weights at ZeRO 1, 2 and 3; some pruners also with offload, DeepSpeed's keys and no sub-groups. At
    ZeRO 0 masks alone, of a cut before the first step: its steps round in another way, whatever prunes."""
    world_size, kind = case
    layouts = parity_checks.names(kind, world_size)
    results = parity(world_size, *PARITY[world_size])[kind]
    _same_bits(results, layouts, ["masks"])
    sharded = [name for name in layouts if name != "zero0" or kind not in parity_checks.UNSHARDED]
    _same_bits({name: results[name] for name in sharded}, sharded)
    if kind == "n_of_m":
        cut = [results[name]["straddles"] for name in layouts if name in ("zero1", "zero3", "zero3 in sub-groups")]
        assert all(cut), "no group crosses a shard boundary"


@pytest.mark.slow
def test_pruners_differ() -> None:
    """Equal hashes above are not equal because nothing happened."""
    results = parity(2, *PARITY[2])
    masks = [result["zero2"]["masks"] for kind, result in results.items() if "fp32" not in kind]
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("case", quick_and_slow(*map(oracle_checks.cases, ("quick", "slow"))), ids="-".join)
def test_equals_the_naive_implementation(case: tuple[str, str]) -> None:
    """Masks identical, weights within 1e-6, the clipping norm within 1e-6, after every step. The slow set adds criteria
    that are the same code on a shard, and ZeRO 0, 2 and offload."""
    kind, layout = case
    steps = against_oracle("quick" if case in oracle_checks.cases("quick") else "slow")[kind][layout]
    assert all(equal for equal, _, _ in steps), [equal for equal, _, _ in steps]
    assert max(gap for _, gap, _ in steps) < 1e-6
    assert max(norm for _, _, norm in steps) < 1e-6


@on_every_layout
def test_skipped_step_changes_nothing(layout: str) -> None:
    """One infinite loss in the dense, soft, final and hard step: no score, mask, weight or moment moves."""
    said = core(which(layout))["skipped"][layout]
    assert said.pop("sparsity") == pytest.approx(0.8, abs=1e-4)
    assert said.pop("adam") == [core_checks.STEPS - 4], "one too many where DeepSpeed steps when it is built"
    assert said == {str(step): [True, []] for step in (1, 4, 8, 9)}


@pytest.mark.parametrize("which", quick_and_slow(["quick"], ["slow"]))
def test_interruption_changes_nothing(which: str) -> None:
    """Resumed in each phase on the same layout: bitwise the undisturbed run. The slow set adds the
    other layouts."""
    for case, (undisturbed, resumed) in core(which)["interrupted"].items():
        assert resumed == undisturbed, case


def test_another_layout_loads_the_same_bits() -> None:
    """A checkpoint of ZeRO 1 in the soft phase, at ZeRO 3; `every_layout_loads_every_layout` adds the rest."""
    saved, loaded = core("quick")["moved"]
    assert loaded == saved


@pytest.mark.parametrize("layout", quick_and_slow(core_checks.PLAIN["quick"], core_checks.PLAIN["slow"]))
def test_pruner_off_is_plain_deepspeed(layout: str) -> None:
    """Bit for bit, with the same param groups, but for the step that ZeRO 0 makes when it is built. A step of an
    infinite loss is skipped."""
    ours, theirs, skipped, after = core("quick" if layout in core_checks.PLAIN["quick"] else "slow")["plain"][layout]
    assert ours == theirs
    assert skipped and after == ours


@pytest.mark.slow
def test_every_layout_loads_every_layout(tmp_path: Path) -> None:
    """2 -> 2, 2 -> 1 and 2 -> 1 -> 2 ranks, ZeRO 0, 1, 2, 3 and sub-groups: the same bits right after each load, and
    training then ends within twice the spread of 3 seeds of plain DeepSpeed."""
    every = str(len(layout_checks.LAYOUTS))
    first, second, checks = tmp_path / "two", tmp_path / "one", "tests.distributed.layout_checks"
    saved = run_ranks(checks, 2, "save", str(first))
    _assert_equal(saved, run_ranks(checks, 2, "load", str(first), every))
    _assert_equal(saved, run_ranks(checks, 1, "load", str(first), every, str(second)))
    _assert_equal(saved, run_ranks(checks, 2, "load", str(second), "1"))


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


@pytest.mark.parametrize("which", quick_and_slow(["quick"], ["slow"]))
def test_fault_at_every_write_of_a_checkpoint(which: str) -> None:
    """An error or a death at each write, with a torn file (slow: or none): the checkpoint found after it is whole and
    right."""
    result = run_ranks("tests.distributed.fault_checks", 1, which)
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
