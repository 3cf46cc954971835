"""Movement's prior by Wanda: which weights go before there is evidence, what counts beside it, and a resume."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.common.comm import LOCAL
from pat.pruning import registry
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.weights.prior import Prior
from pat.pruning.weights.shard_state import MaskedShard
from pat.zero.layouts import Segment, Shard
from tests import models, one_rank
from tests.unit.pruning.calibration.test_cuts import STEPS, config, trained
from tests.unit.pruning.calibration.test_walk import batches, matrices, naive
from tests.unit.pruning.test_resume import Saved, snapshot

WANDA = {"name": "movement", "prior_score": "wanda"}
AT_ONCE = {"name": "one_shot", "start": 0, "hard_from": 4}
GRADUAL = {"name": "linear", "start": 1, "end": 4, "hard_from": 5, "select_every": 1}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def lowest_half(score: Tensor) -> Tensor:
    flags = torch.zeros(score.numel(), dtype=torch.bool)
    return flags.scatter_(0, score.flatten().argsort()[: score.numel() // 2], True).view_as(score)


@pytest.mark.parametrize("family, scope", [("llama", "matrix"), ("gpt2", "matrix"), ("llama", "global")])
def test_before_there_is_evidence_wandas_smallest_go(family: str, scope: str) -> None:
    """W^2 E[x^2] on the real tokens of the dense model, of each matrix over the mean of its inputs; would catch: rows
    for columns (GPT-2 stores its maps the other way), W^2 alone, and Wanda's scale between matrices."""
    dense = models.model(family)
    _, _, after = trained(config(WANDA, scope, AT_ONCE, params=["all-linear"]), 1, family)
    grams, scores, sizes = naive(dense, batches()), dict[str, Tensor](), dict[str, Tensor]()
    for name in matrices(dense):
        inputs, weight = grams[name].diagonal(), dense.get_parameter(name).detach().double()
        m = inputs / inputs.mean()
        sizes[name] = weight.square()
        scores[name] = sizes[name] * (m[:, None] if family == "gpt2" else m)
    if scope == "global":
        expected, split = lowest_half(torch.cat([s.flatten() for s in scores.values()])), 0
        for name, score in scores.items():
            gone = expected[split : split + score.numel()].view_as(score)
            split += score.numel()
            assert torch.equal(after[0][name] == 0, gone), name
        return
    for name, score in scores.items():
        assert torch.equal(after[0][name] == 0, lowest_half(score)), name
        assert not torch.equal(lowest_half(score), lowest_half(sizes[name])), "the inputs decide nothing here"


@pytest.mark.parametrize("transposed", [False, True])
def test_evidence_and_prior_have_the_sizes_that_are_asked_for(transposed: bool) -> None:
    """mean(c Q) = weight RMS(S), Q element by element as the formula says, however the shards are cut."""
    generator = torch.Generator().manual_seed(0)
    stored = (12, 7) if transposed else (7, 12)
    m, dense, score = (torch.randn(n, generator=generator) for n in (12, 84, 84))
    m = m.square() / m.square().mean()
    squares = dense.view(stored).square() * (m[:, None] if transposed else m)
    for cuts in ([84], [5, 6, 30, 43], [12, 1, 23, 24, 24]):
        prior = Prior({"a": stored}, {"a"} if transposed else (), Matrix())
        prior.inputs["a"] = m
        states, at = list[MaskedShard](), 0
        for n in cuts:
            own = dense[at : at + n]
            torch.testing.assert_close(prior.squares("a", at, own), squares.flatten()[at : at + n], rtol=1e-6, atol=0)
            shard = Shard(0, 0, own.clone(), (Segment("a", stored, at, n, 0, 0),))
            states.append(MaskedShard(shard, score=score[at : at + n], dense=own))
            at += n
        c = prior.coefficients(states, 3.0, LOCAL)["a"]
        assert c * float(squares.mean()) == pytest.approx(3.0 * float(score.square().mean().sqrt()), rel=2**-8)


def test_a_matrix_into_which_nothing_goes_is_refused_with_what_to_do() -> None:
    model = models.model("llama")
    model.model.layers[1].mlp.up_proj.weight.data.zero_()
    engine, pruner = one_rank.build(config(WANDA, "matrix", AT_ONCE, params=["all-linear"]), model)
    one_rank.surround(pruner, samples=lambda number: batches())
    engine.backward(engine(**batches()[0]).loss)
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj.weight cannot be ranked .* 0 .*; exclude it"):
        pruner.step(0)


def test_what_was_measured_is_resumed_and_gone_when_hard() -> None:
    """In the soft phase: the same bits as the undisturbed run, without a sample."""

    def build(model: Any) -> tuple[Any, Any]:
        engine, pruner = one_rank.build(config(WANDA, "matrix", GRADUAL), model)
        one_rank.surround(pruner, samples=lambda number: batches())
        return engine, pruner

    def step(engine: Any, pruner: Any, t: int) -> None:
        engine.backward(engine(**batches()[t % 3]).loss)
        pruner.step(t)

    def none(number: int) -> Any:
        raise AssertionError("measured again")

    model = models.model("llama")
    engine, pruner = build(model)
    for t in range(3):
        step(engine, pruner, t)
    tensors, shared = snapshot(pruner)
    fresh = copy.deepcopy(model)
    other, loaded = build(fresh)
    one_rank.surround(loaded, samples=none)
    other.optimizer.load_state_dict(copy.deepcopy(engine.optimizer.state_dict()))
    loaded.load_state(Saved(tensors), shared)
    for t in range(3, STEPS):
        step(engine, pruner, t)
        step(other, loaded, t)
    for (name, mine), theirs in zip(fresh.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    loaded.check_finished()
    assert not any("|gate|" in key for key in loaded.state()[0])


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"prior": 1.0}, "num_samples"),
        ({"num_samples": 0}, "num_samples"),
        ({"prior_score": "magnitude", "num_samples": 64}, "num_samples"),
        ({"prior_score": "wonda"}, "prior_score is 'wonda'"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(more: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        registry.build("criterion", WANDA | more)
