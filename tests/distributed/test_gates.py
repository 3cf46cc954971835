"""Gates on ranks. One start runs many checks; the checks themselves are in gate_checks.py."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

from tests.distributed import gate_checks, gate_oracle_checks
from tests.distributed.harness import GATES
from tests.distributed.ranks import run_ranks

SCRIPT = "tests.distributed.gate_checks"
pytestmark = pytest.mark.distributed


def slow(*items: Any) -> Any:
    """Parameters of the slow set."""
    return pytest.param(*items, marks=pytest.mark.slow)


@cache
def parity(world_size: int, *kinds: str) -> dict[str, Any]:
    """Results on every layout."""
    return run_ranks(SCRIPT, world_size, "parity", *kinds)


def test_same_bits_at_each_zero_stage() -> None:
    """A learned gate, sampled; the slow set adds the other methods, which the quick oracles rank in one process."""
    _same(several("quick")["parity"]["l0"], "l0", gate_checks.QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GATES)
def test_same_bits_on_every_zero_stage(kind: str) -> None:
    """Flags and weights at ZeRO 1, 2 and 3, some gates also in one group and with offload; the shape is the budget's
    exactly."""
    _same(parity(2, *GATES)[kind], kind, gate_checks.names(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l0", "structured_movement"])
def test_same_bits_on_four_ranks(kind: str) -> None:
    _same(parity(4, kind)[kind], kind, gate_checks.names(kind))


def _same(results: dict[str, Any], kind: str, layouts: Iterable[str]) -> None:
    assert set(results) == set(layouts)
    for key in ("masks", "weights"):
        assert len({r[key] for r in results.values()}) == 1, {name: r[key][:8] for name, r in results.items()}
    budget = GATES[kind].get("budget", {"keep": {"ffn": 20, "kv_groups": 1}})["keep"]
    for result in results.values():
        assert result["sparsity"] == result["target"] > 0
        for structure, kept in result["counts"].items():
            pooled = max(kept) <= 1 and structure not in ("kv_groups",)
            assert (sum(kept) == budget[structure]) if pooled else set(kept) == {budget[structure]}


@cache
def several(which: str) -> dict[str, Any]:
    """Runs with gates and masks, with skipped steps, with interruptions, of the quick or the slow set; of the quick one
    parity and oracles, too."""
    return run_ranks(SCRIPT, 2, "several", which, timeout_s=900)


@pytest.mark.parametrize(("which", "case"), [("quick", "inside"), slow("slow", "inside"), slow("slow", "beside")])
def test_gates_and_masks_in_one_run(which: str, case: str) -> None:
    """L0 and 2:4, in what L0 leaves (slow: or in other matrices): exactly at the targets, the same bits at ZeRO 1 and 3
    (slow: and 2)."""
    results = several(which)["together"][case]
    assert len(results) == (2 if which == "quick" else 3) and all(
        result == results["zero1"] for result in results.values()
    )
    assert results["zero1"]["each"] == {"weights": 0.5, "two_four": 0.5}
    assert results["zero1"]["sparsity"] == results["zero1"]["target"]


def test_weights_that_gates_and_masks_share_count_once() -> None:
    """Half of the neurons and groups, and half of what is left but in down_proj (a third of the FFN)."""
    ffn, attention = 3 * 24 * 40, 2 * 24 * 24 + 2 * 24 * 12  # LLAMA of the harness, per layer
    pruned = (ffn + attention) / 2 + (ffn * 2 / 3 + attention) / 4
    assert several("quick")["together"]["inside"]["zero1"]["sparsity"] == pruned / (ffn + attention)


@pytest.mark.slow
def test_methods_differ() -> None:
    """Equal hashes above are not equal because nothing happened."""
    results = parity(2, *GATES)
    kinds = ("l0", "structured_movement", "activation", "sublayers")
    assert len({results[kind]["zero2"]["masks"] for kind in kinds}) == len(kinds)


on_quick_and_slow_layouts = pytest.mark.parametrize("which", ["quick", slow("slow")])


@on_quick_and_slow_layouts
def test_skipped_step_changes_nothing(which: str) -> None:
    """One infinite loss in the dense, soft and hard step: no score, a, multiplier, weight or moment moves."""
    for case, steps in several(which)["skipped"].items():
        assert steps == {str(step): [True, []] for step in (1, 4, 9)}, case


@on_quick_and_slow_layouts
def test_a_gate_gradient_that_is_not_finite_skips_weights_and_gates(which: str) -> None:
    """As in fp16, where gates overflow first: DeepSpeed skips the step, and no infinity enters a score."""
    for case, steps in several(which)["overflowed"].items():
        assert steps == {str(step): [True, [], True] for step in (4, 5)}, case


@on_quick_and_slow_layouts
def test_interruption_changes_nothing(which: str) -> None:
    """Resumed in each phase on the same layout: bitwise the undisturbed run, gates and multipliers too. The slow set
    adds layouts and every gate."""
    for case, (undisturbed, resumed) in several(which)["interrupted"].items():
        assert resumed == undisturbed, case


@pytest.mark.slow
def test_recomputed_activations_change_nothing() -> None:
    """Activation checkpointing of both kinds: the same flags, weights and so gate gradients."""
    for kind, (plain, *recomputed) in run_ranks(SCRIPT, 2, "recomputed").items():
        assert all(result == plain for result in recomputed), kind


@pytest.mark.slow
def test_one_rank_and_two_come_to_the_same() -> None:
    """The same global batch in fp32: the loss within 1 %, and nine in ten units as on the other number of ranks."""
    one, two = (run_ranks(SCRIPT, n, "curve", "l0", "structured_movement") for n in (1, 2))
    for kind, (loss, keep) in one.items():
        assert two[kind][0] == pytest.approx(loss, rel=0.01), kind
        same = [a == b for a, b in zip(keep, two[kind][1], strict=True)]
        assert sum(same) >= 0.9 * len(same), kind


@cache
def against_oracle(which: str) -> dict[str, Any]:
    """All cases of the quick or the slow set in one start."""
    if which == "quick":
        return several(which)["oracle"]
    return run_ranks("tests.distributed.gate_oracle_checks", 2, which)


@pytest.mark.parametrize(
    "pair", [*gate_oracle_checks.cases("quick"), *map(slow, gate_oracle_checks.cases("slow"))], ids="-".join
)
def test_the_planted_units_stay_as_in_the_naive_implementation(pair: tuple[str, str]) -> None:
    """Flags equal at every step and those that were planted in the end; gates, scores and weights to the tolerance of
    the case, and scores that are sums over ranks to 1e-4. In pat's loop, also with a teacher, and attached to another.
    The quick set meets each loop, a ranked and a learned gate, and each ZeRO stage once; the slow set all of each.
    """
    case, layout = pair
    which = "quick" if pair in gate_oracle_checks.cases("quick") else "slow"
    near = gate_oracle_checks.CASES[case].tolerance
    equal, gates, scores, weights, folded = zip(*against_oracle(which)[case][layout], strict=True)
    assert all(equal), equal
    assert max(gates) <= near.gates and max(scores) <= max(near.scores, 1e-4), (gates, scores)
    assert max(weights) <= near.weights and max(folded) <= near.folded, (weights, folded)
