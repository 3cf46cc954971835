"""Distillation under real DeepSpeed, two ranks; the checks themselves are in distill_checks.py."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.distributed.distill_checks import LAYOUTS, QUICK
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

SAME = [name for name in LAYOUTS if name not in ("zero0", "zero3 accumulation")]
SLOW = [name for name in LAYOUTS if name not in QUICK]  # the slow set adds interruptions and `pat train`, too

on_each_set = pytest.mark.parametrize("which", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
on_every_layout = pytest.mark.parametrize("layout", [*QUICK, *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW)])


@cache
def said(which: str) -> dict[str, Any]:
    """One start for all of a set."""
    return run_ranks("tests.distributed.distill_checks", 2, which, timeout_s=900)


@on_each_set
def test_same_bits_on_every_zero_stage(which: str) -> None:
    """Masks, weights and what is logged: a teacher that answers otherwise when it is sharded would change them."""
    results = said(which)["parity"]
    same = [name for name in SAME if name in results]
    assert len(same) == (2 if which == "quick" else len(SAME))
    for key in ("masks", "weights", "line"):
        assert all(results[name][key] == results["zero1"][key] for name in same), {n: results[n][key] for n in same}
    assert results["zero1"]["masks"] != results["no teacher"]["masks"], "the teacher changes nothing"
    assert results["zero1"]["line"]["distill/kl"] > 0 and results["zero1"]["line"]["distill/weight"] == 0.5


@on_each_set
def test_hidden_states_are_the_same_bits_on_every_zero_stage(which: str) -> None:
    """Three gradients meet at a layer's input: its norm's, the residual's and the distillation's."""
    results = said(which)["parity"]["hidden"]
    assert len(results) > 1
    assert all(result == results["zero1"] for result in results.values()), results
    assert all(value > 0 for value in results["zero1"]["line"].values())
    assert results["zero1"]["masks"] != said(which)["parity"]["zero1"]["masks"], "hidden states change nothing"


@on_every_layout
def test_the_teacher_stays_what_was_saved(layout: str) -> None:
    """Its logits are bitwise those of a plain model, before and after training."""
    result = said("quick" if layout in QUICK else "slow")["parity"][layout]
    assert result["as saved"] and result["unchanged"] and result["sparsity"] > 0.7


@on_every_layout
def test_the_teacher_is_sharded_at_zero_3(layout: str) -> None:
    """Half of its elements on each of two ranks, up to padding; between steps none is whole that need not be."""
    for rank in said("quick" if layout in QUICK else "slow")["parity"][layout]["teacher"]:
        if layout.startswith("zero3"):
            assert rank["all"] <= 2 * rank["sharded"] < rank["all"] + 2 * 64
            if "nothing persistent" in layout:
                assert rank["whole"] == 0
        else:
            assert rank["sharded"] == 0 and rank["whole"] == rank["all"]


@pytest.mark.slow
def test_interruption_changes_nothing() -> None:
    """Stopped in the ramp, in the soft and in the hard phase: bitwise the undisturbed run."""
    for layout, (undisturbed, resumed) in said("slow")["interrupted"].items():
        assert resumed == undisturbed, layout


@pytest.mark.slow
def test_the_loop_distils_from_a_cache_as_from_the_teacher() -> None:
    """`pat.train` with drawn answers: the same bits at ZeRO 2 and 3 and after an interruption, a divergence that is the
    teacher's up to the draws, and the cache's hash in the summary."""
    results = said("cached")
    live, first = results["live"], results["zero2"]
    assert results["cache"]["shards"] == 3
    for name in ("zero3", "interrupted"):
        assert results[name] == first, name
    assert first["teacher"]["cache_sha256"] == results["cache"]["sha256"]
    assert first["teacher"]["sha256"] == live["teacher"]["sha256"] and "cache_sha256" not in live["teacher"]
    assert first["kl"] == pytest.approx(live["kl"], rel=0.03) and first["weights_sha256"] != live["weights_sha256"]
    assert first["metrics"]["loss"] == pytest.approx(live["metrics"]["loss"], rel=0.01)


@pytest.mark.slow
def test_the_loop_distils_and_refuses_to_go_on_with_another_teacher() -> None:
    """`pat.train` with the parity recipe: metrics, summary, the same masks at ZeRO 2 and 3, the sentence."""
    results = said("slow")["loop"]
    on, sharded, off = (results[name] for name in ("on", "zero3", "off"))
    assert off["teacher"] is None and not any(off["lines"])
    assert on["mask_sha256"] == sharded["mask_sha256"] != off["mask_sha256"]
    assert on["weights_sha256"] == sharded["weights_sha256"]
    assert on["lines"] == sharded["lines"]
    assert [line["distill/weight"] for line in on["lines"][:12]] == pytest.approx([0.05 * t for t in range(11)] + [0.5])
    assert "distill/kl" not in on["lines"][0] and all(line["distill/kl"] > 0 for line in on["lines"][1:])
    assert len(on["teacher"]["sha256"]) == 64 and on["teacher"]["path"].endswith("teacher")
    assert "the checkpoint was made with the teacher" in results["changed"]
