"""LoRA adapters under gates on ranks. The checks are in peft_checks.py."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks

SCRIPT = "tests.distributed.peft_checks"
pytestmark = pytest.mark.distributed
KINDS = ("l0", "structured_taylor", "activation", "sublayers", "obs")
FITTED = ("obs",)  # whose cut changes the frozen weights


@cache
def parity(kind: str) -> dict[str, Any]:
    """What two ranks found on every layout."""
    return run_ranks(SCRIPT, 2, "parity", kind)[kind]


@pytest.mark.slow
def test_two_zero_stages() -> None:
    """As below, at ZeRO 2 and 3; the slow set adds 0, 1, other gates, interruptions and what a checkpoint holds."""
    results = run_ranks(SCRIPT, 2, "quick", "l0", "obs")
    for kind in results:
        _check(results[kind], kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_zero_stage(kind: str) -> None:
    """The budget's shape at every ZeRO stage, the same bits at 1, 2 and 3; adapters train. The base stays as it
    was, but for a cut that fits it.

    Closed gates go on multiplying: as many units are closed in the forward as the budget removes.
    """
    _check(parity(kind), kind)


def _check(results: dict[str, Any], kind: str) -> None:
    for key in ("masks", "weights"):
        assert len({result[key] for layout, result in results.items() if layout != "zero0"}) == 1, key
    for layout, result in results.items():
        assert result["sparsity"] == result["target"] > 0, layout
        assert {s: sum(n) for s, n in result["counts"].items()} == {
            s: sum(n) for s, n in results["zero2"]["counts"].items()
        }
        assert result["base_moved"] == (kind in FITTED), layout
        assert result["adapters_moved"] > 0.9, layout
        full = {"ffn": 40, "kv_groups": 2, "attention_layers": 1, "mlp_layers": 1}
        removed = sum(full[s] * len(n) - sum(n) for s, n in result["counts"].items())
        assert sum(result["closed"]) == removed > 0, layout


@pytest.mark.slow
def test_methods_differ() -> None:
    """Equal hashes above are not equal because nothing happened."""
    assert len({parity(kind)["zero2"]["masks"] for kind in KINDS}) == len(KINDS)


@pytest.mark.slow
def test_interruption_changes_nothing() -> None:
    """Resumed in each phase, with gates that stay in the forward of the hard one, or with frozen weights that a cut has
    fitted: bitwise the undisturbed run."""
    cases = ["l0/zero3", "l0/zero2", "l0/zero0", "obs/zero3", "obs/zero2"]
    for case, (undisturbed, resumed) in run_ranks(SCRIPT, 2, "interrupted", *cases).items():
        assert resumed == undisturbed, case


@pytest.mark.slow
def test_another_stage_goes_on_from_the_same_state() -> None:
    """Frozen weights, adapters, moments and final gates, from ZeRO 2 to 3; the same held-out loss to bf16 rounding."""
    said = run_ranks(SCRIPT, 2, "moved")
    assert said["loaded"][0] == said["saved"][0]
    assert said["loaded"][1] == pytest.approx(said["saved"][1], rel=1e-3)


@pytest.mark.slow
def test_a_checkpoint_is_whole_and_holds_the_base_once() -> None:
    """2 bytes of a frozen weight, at most 16 of a trained one (bf16, fp32, moments): no optimizer state of the base."""
    for layout, (size, frozen, trained, whole) in run_ranks(SCRIPT, 2, "bytes").items():
        assert whole == frozen + trained, layout
        assert 2 * frozen < size < 1.5 * 2 * frozen + 16 * trained + 300_000, (layout, size, frozen, trained)
