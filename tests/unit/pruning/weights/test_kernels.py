"""The passes over a flat shard: by hand, in every mode, at every length, and against torch's own AdamW."""

from __future__ import annotations

import logging
import math
from fractions import Fraction

import pytest
import torch

from pat.pruning import registry
from pat.pruning.weights import kernels
from pat.pruning.weights.kernels import Kernels, make_kernels, masked_sum_of_squares
from pat.schema import MaskedGradConfig
from tests import models
from tests.sets import slow

LENGTHS = [0, 1, 2, 15, 16, 17, 1001, 70_001]
STRAIGHT = MaskedGradConfig(name="straight_through", sr_ste=2e-4)


def shard(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Score, dense, grad, keep, out of one shard, (n,) each."""
    generator = torch.Generator().manual_seed(seed)
    score, dense, grad = (torch.randn(n, generator=generator) for _ in range(3))
    keep = (torch.rand(n, generator=generator) > 0.5).to(torch.uint8)
    return {"score": score, "dense": dense * 0.02, "grad": grad * 1e-3, "keep": keep, "out": torch.full((n,), 7.0)}


def all_passes(k: Kernels, state: dict[str, torch.Tensor], decay: float) -> dict[str, torch.Tensor]:
    """Each pass once, on clones; every tensor it could have written."""
    s = {name: t.clone() for name, t in state.items()}
    k.pre_dense(s["score"], s["dense"], s["grad"], 0.01)
    for coef in (0.01, 0.02):
        k.pre_soft(s["score"], s["dense"], s["grad"], s["keep"], coef, decay, 0.01)
    k.post_soft(s["out"], s["dense"], s["keep"])
    s["moment"] = state["grad"].clone()
    k.pre_hard(s["moment"], s["keep"])
    return s


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in a:
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), name


CASES = [pytest.param(name, MaskedGradConfig(), id=name) for name in models.elementwise_criteria()]
CASES += [pytest.param(name, STRAIGHT, id=f"{name}-straight_through") for name in ("magnitude", "movement")]
QUICK = ("soft_movement", "magnitude-straight_through")  # with and without a score, and what compiles worst


@pytest.mark.parametrize(("criterion", "masked_grad"), [case if case.id in QUICK else slow(case) for case in CASES])
def test_modes_and_chunks_agree_bitwise(
    criterion: str, masked_grad: MaskedGradConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = registry.build("criterion", criterion)
    torch.compiler.reset()
    compiled, eager = make_kernels(built, masked_grad, "compile"), make_kernels(built, masked_grad, "eager")
    for n in LENGTHS:
        for decay in (1e-5, 0.0):
            state = shard(n, seed=n)
            expected = all_passes(eager, state, decay)
            assert_same_bits(all_passes(compiled, state, decay), expected)
            with monkeypatch.context() as patch:
                patch.setitem(kernels.CHUNK, "cpu", 1 + n // 7)
                assert_same_bits(all_passes(eager, state, decay), expected)


def test_movement_soft_step_by_hand() -> None:
    k = make_kernels(registry.build("criterion", "movement"), MaskedGradConfig(), "eager")
    score, dense, grad = torch.tensor([1.0, 1.0]), torch.tensor([2.0, -4.0]), torch.tensor([0.5, 0.25])
    keep, out = torch.tensor([1, 0], dtype=torch.uint8), torch.empty(2)
    k.pre_soft(score, dense, grad, keep, 0.0, 0.5)
    assert score.tolist() == [0.0, 2.0]  # from the weights before decay and the gradient before masking
    assert grad.tolist() == [0.5, 0.0]
    assert dense.tolist() == [1.0, -4.0]
    k.post_soft(out, dense, keep)
    assert out.tolist() == [1.0, 0.0]


def test_straight_through_by_hand() -> None:
    config = MaskedGradConfig(name="straight_through", sr_ste=0.5)
    k = make_kernels(registry.build("criterion", "magnitude"), config, "eager")
    dense, grad = torch.tensor([2.0, -4.0]), torch.tensor([0.5, 0.25])
    k.pre_soft(None, dense, grad, torch.tensor([1, 0], dtype=torch.uint8), 0.0, 0.5, 0.25)
    assert grad.tolist() == [0.5, 0.25] and dense.tolist() == [1.0, -3.5]  # 1 - 0.5 and 1 - 0.25 * 0.5


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_decay_of_masked_weights_is_as_strong_as_it_says(scale: float) -> None:
    """Under Adam, with gradients of two sizes: would catch a decay that goes through the gradient, which is divided."""
    lr, steps, generator = 1e-2, 30, torch.Generator().manual_seed(0)
    keep = torch.zeros(2000, dtype=torch.uint8)
    grads = [torch.randn(2000, generator=generator) * scale for _ in range(steps)]
    ends = []
    for sr_ste in (0.0, 1.0, 2.0):
        config = MaskedGradConfig(name="straight_through", sr_ste=sr_ste)
        k = make_kernels(registry.build("criterion", "magnitude"), config, "eager")
        weight = torch.nn.Parameter(torch.full((2000,), 100.0))
        optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.0)
        for grad in grads:
            weight.grad = grad.clone()
            k.pre_soft(None, weight.data, weight.grad, keep, 0.0, 0.0, lr)
            optimizer.step()
        ends.append(float(weight.detach().mean()))
    assert ends[0] == pytest.approx(100.0, rel=1e-2)
    assert ends[1] / ends[0] == pytest.approx((1 - lr) ** steps, rel=1e-2)
    assert ends[2] / ends[0] == pytest.approx((1 - 2 * lr) ** steps, rel=1e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_decay_has_the_bits_of_adamw(fused: bool) -> None:
    state = shard(5001)
    decays = [(3e-5, 0.01), (1e-3, 0.1), (2.7e-4, 0.037), (1e-9, 1e-3)]
    k = make_kernels(registry.build("criterion", "magnitude"), MaskedGradConfig(), "eager")
    for lr, wd in decays:
        weight = torch.nn.Parameter(state["dense"].clone())
        ours = torch.nn.Parameter(state["dense"].clone())
        weight.grad, ours.grad = state["grad"] * state["keep"], state["grad"].clone()
        torch.optim.AdamW([weight], lr=lr, weight_decay=wd, fused=fused, foreach=False).step()
        k.pre_soft(None, ours, ours.grad, state["keep"], 0.0, lr * wd)
        torch.optim.AdamW([ours], lr=lr, weight_decay=0.0, fused=fused, foreach=False).step()
        alive = state["keep"].bool()
        assert torch.equal(ours[alive], weight[alive])
        assert torch.equal(ours[~alive], state["dense"][~alive])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("masked", [True, False])
def test_sum_of_squares(n: int, masked: bool) -> None:
    state = shard(n)
    keep = state["keep"] if masked else None
    got = masked_sum_of_squares(state["grad"], keep)
    flags = keep.tolist() if keep is not None else [1] * n
    exact = sum((Fraction(g) ** 2 * k for g, k in zip(state["grad"].tolist(), flags, strict=True)), Fraction(0))
    assert got.dtype == torch.float64 and got.dim() == 0
    assert math.isclose(float(got), float(exact), rel_tol=1e-14, abs_tol=0.0)


def test_sum_of_squares_does_not_depend_on_threads() -> None:
    state, threads, sums = shard(300_001), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            sums.append(float(masked_sum_of_squares(state["grad"], state["keep"])))
    finally:
        torch.set_num_threads(threads)
    assert len(set(sums)) == 1


def test_auto_falls_back_with_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: torch.Tensor) -> None:
        raise RuntimeError("no working C++ compiler\nand much more")

    monkeypatch.setattr(kernels, "AUTO_COMPILE_FROM", 0)
    monkeypatch.setattr(kernels, "_warned", False)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    built, state = registry.build("criterion", "movement"), shard(1001)
    auto, eager = (make_kernels(built, MaskedGradConfig(), mode) for mode in ("auto", "eager"))
    with caplog.at_level(logging.WARNING):
        assert_same_bits(all_passes(auto, state, 1e-5), all_passes(eager, state, 1e-5))
    assert len(caplog.records) == 1 and "no working C++ compiler" in caplog.text and "more" not in caplog.text
    strict = make_kernels(built, MaskedGradConfig(), "compile")
    with pytest.raises(RuntimeError, match="set engine.kernels=eager"):
        all_passes(strict, state, 1e-5)


@pytest.mark.parametrize(
    ("config", "mode", "sentence"),
    [
        (MaskedGradConfig(), "fast", "engine.kernels is 'fast', but must be one of auto, compile, eager"),
        (MaskedGradConfig.model_construct(name="none"), "auto", "masked_grad.name is 'none'"),
        (MaskedGradConfig(sr_ste=0.1), "auto", "only acts with masked_grad.name=straight_through"),
        (MaskedGradConfig.model_construct(name="straight_through", sr_ste=-1.0), "auto", "must be at least 0"),
    ],
)
def test_refusals(config: MaskedGradConfig, mode: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_kernels(registry.build("criterion", "magnitude"), config, mode)
