"""The object that the loop talks to: what it refuses, what it counts over its pruners, and what it promises."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pat.common.comm import LOCAL
from pat.pruning.calibration.calibrator import Calibrator, Surroundings
from pat.pruning.calibration.walk import NotCalibrated
from pat.pruning.clock import Clock
from pat.pruning.pruner import Pruner
from pat.pruning.types import PromiseBroken
from pat.schema import Config, PrunerConfig
from tests import models as small
from tests import one_rank, planted
from tests.planted import Case
from tests.unit.pruning.calibration import test_walk as walks

STEPS = 12
CASE = Case("taylor", ("ffn",))


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def masks(params: str, start: int = 8, **fields: Any) -> PrunerConfig:
    given: dict[str, Any] = {
        "granularity": {"name": "n_of_m", "n": 2, "m": 4}, "criterion": "magnitude",
        "budget": {"name": "sparsity", "sparsity": 0.5},
        "schedule": {"name": "linear", "start": start, "end": 10},
    }  # fmt: skip
    return PrunerConfig(params=[params], **(given | fields))


def gates(keep: int = 64, **fields: Any) -> PrunerConfig:
    schedule = {"name": "linear", "start": 2, "end": 6, "hard_from": 8}
    budget = {"name": "shape", "keep": {"ffn": keep}}
    return PrunerConfig(**({"structures": ["ffn"], "gate": "l0", "budget": budget, "schedule": schedule} | fields))


def attached(**pruners: PrunerConfig) -> Pruner:
    """On a Llama of 3 layers with 128 neurons and hidden size 48."""
    pruner = Pruner(Config().changed(train__num_steps=STEPS, pruners=pruners))
    pruner.attach(small.model("llama"))
    return pruner


def test_when_a_calibrated_cut_comes_next() -> None:
    """A checkpoint is made before it. That of step 8, or, of gates, in the step before."""
    one_shot = {"name": "one_shot", "start": 8, "end": None, "hard_from": 8}
    pruner = attached(p=masks("model.layers.*.mlp.down_proj.weight", criterion="wanda", schedule=one_shot))
    assert [t for t in range(STEPS) if pruner.cuts_next(t)] == [7, 8]
    ramp = {"name": "linear", "start": 2, "end": 8, "hard_from": 8, "select_every": 3}
    fields: dict[str, Any] = {"granularity": "weight", "schedule": ramp, "scope": "matrix"}
    ramped = masks("model.layers.*.mlp.down_proj.weight", criterion="wanda", **fields)
    for seen_before in (True, False):  # a run that was interrupted sees the pause at once
        held, clock = attached(p=ramped), Clock()
        held.follow(clock)
        if seen_before:
            assert held.cuts_from(0) == 2 and [t for t in range(STEPS) if held.cuts_next(t)] == [4, 5, 7, 8]
        clock.hold(4)
        assert not any(held.cuts_next(t) for t in range(4, STEPS)), "none comes while the schedules are held"
        clock.go_on(6)
        assert [t for t in range(STEPS + 2) if held.cuts_next(t)] == [6, 7, 9, 10]
        assert [held.cuts_from(t) for t in (5, 7, 8, 11)] == [2, 2, 1, 0]
        clock.stop(9)
        assert held.cuts_from(9) == 0 and not held.cuts_next(9)
    plain = attached(p=masks("model.layers.*.mlp.down_proj.weight", schedule=one_shot))
    assert not any(plain.cuts_next(t) for t in range(STEPS)), "its cut takes no time"


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [0, 3], ids=["as it is", "with a convolution between its layers"])
def test_a_model_that_no_cut_could_be_calibrated_on_is_refused_at_the_start(kernel: int) -> None:
    """Not after the steps before the first cut. A convolution behind DeBERTa's first layer is part of no layer."""
    model = walks.other("deberta-v2", conv_kernel_size=kernel, conv_act="gelu")
    config = masks("deberta.encoder.layer.*.dense.weight", criterion="wanda")
    pruner = Pruner(Config().changed(train__num_steps=STEPS, pruners__p=config))
    pruner.attach(model)
    weights: Any = SimpleNamespace(
        whole=lambda name: model.get_parameter(name).detach(),
        narrow=lambda name, dtype: model.get_parameter(name).detach().to(dtype),
    )
    given = Surroundings(samples=lambda number: walks.batches())
    pruner.calibrator = Calibrator(model, model, weights, torch.bfloat16, LOCAL, [], given)
    with pytest.raises(NotCalibrated, match="Layer 1 gets more") if kernel else contextlib.nullcontext():
        pruner.check_calibration()


def test_a_matrix_has_one_mask() -> None:
    attached(one=masks("*.gate_proj.weight"), other=masks("*.up_proj.weight"))
    with pytest.raises(ValueError, match="pruners.other and pruners.one both take model.layers.0.mlp.gate_proj.weight"):
        attached(one=masks("*.gate_proj.weight"), other=masks("*.mlp.*.weight"))


def test_a_budget_that_removes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="pruners.narrow.budget removes nothing: it leaves 128 of 128 ffn"):
        attached(narrow=gates(keep=128))


# -- what it counts ----------------------------------------------------------------------------------------------------


def test_without_pruners_nothing_is_counted() -> None:
    totals = attached().totals
    assert (totals.numel, totals.num_pruned, totals.sparsity, totals.target, totals.target_now({})) == (0, 0, 0, 0, 0)


def test_weights_that_gates_and_masks_both_remove_count_once() -> None:
    """2:4 in gate_proj, whose rows the gates thin out: by hand."""
    pruner = attached(narrow=gates(), two_four=masks("*.gate_proj.weight"))
    (structure_pruner,), (weight_pruner,), totals = pruner.structure_pruners, pruner.weight_pruners, pruner.totals
    matrix, matrices = 3 * 128 * 48, 3  # elements of all gate_proj; matrices of a neuron: gate, up, down
    assert totals.numel == matrices * matrix
    assert totals.target == ((matrices + 1) / 2 - 1 / 4) / matrices
    assert (totals.num_pruned, totals.sparsity) == (0, 0.0)
    structure_pruner.state.keep = torch.arange(3 * 128) % 4 > 0  # a quarter is gone
    structure_pruner.num_pruned = structure_pruner.units.removed(structure_pruner.state.keep)
    assert totals.num_pruned == matrices * matrix // 4
    weight_pruner.num_pruned = matrix // 2
    assert totals.num_pruned == matrices * matrix // 4 + matrix // 2 - matrix // 8
    assert totals.sparsity == (3 / 4 + 3 / 8) / 3


def test_a_run_is_as_far_as_its_slowest_pruner() -> None:
    pruner = attached(narrow=gates(), two_four=masks("*.self_attn.q_proj.weight", start=4))
    phases = {t: pruner.phase(t) for t in range(STEPS)}
    assert [phases[t] for t in (1, 2, 3, 4, 7, 8, 9, 10, 11)] == ["dense"] * 3 + ["soft"] * 4 + ["hard"] * 2
    assert pruner.first_soft_step == 2 and attached().phase(3) == "dense"


def test_targets_follow_the_schedule() -> None:
    """Half of the neurons in the end; a linear ramp from step 2 to step 6."""
    (structure_pruner,) = attached(narrow=gates()).structure_pruners
    assert [structure_pruner.target(t) for t in (0, 1, 2, 3, 4, 5, 6, 9)] == [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5]


def test_structures_whose_scores_mean_different_things_both_lose_units() -> None:
    """Scores of neurons are a million times as small. Would catch: scores that are compared as if they were one
    currency, by which the neurons alone pay the budget."""
    budget = {"name": "parameters", "sparsity": 0.4, "multiple_of": 1}
    fields: dict[str, Any] = {"structures": ["ffn", "kv_groups"], "budget": budget}
    for method, both in (("activation", True), ("taylor", False)):
        (structure_pruner,) = attached(narrow=gates(**fields, gate=method)).structure_pruners
        structure_pruner.bind(SimpleNamespace(world=LOCAL))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        small_ones = torch.cat([torch.full((s.num_units,), s.structure == "ffn") for s in structure_pruner.sites])
        scores = torch.rand(small_ones.shape, generator=generator) + 1.0
        structure_pruner.state.score = torch.where(small_ones, 1e-6 * scores, scores)
        structure_pruner._select(3, 1.0)
        left = structure_pruner.counts()
        assert max(left["ffn"]) < 128 and (max(left["kv_groups"]) < 4) == both, (method, left)
        removed = 128 * 3 - sum(left["ffn"]), 4 * 3 - sum(left["kv_groups"])
        assert structure_pruner.num_pruned == removed[0] * 3 * 48 + removed[1] * 2 * 48 * (2 + 1) * 6


# -- what it promises --------------------------------------------------------------------------------------------------


def test_a_run_that_ends_before_the_hard_phase_is_told() -> None:
    """Of each pruner."""
    pruner = attached(narrow=gates(), two_four=masks("*.self_attn.q_proj.weight"))
    (structure_pruner,), (weight_pruner,) = pruner.structure_pruners, pruner.weight_pruners
    with pytest.raises(PromiseBroken, match=r"pruner two_four never reached its hard phase \(step 10\)"):
        pruner.check_finished()
    weight_pruner.hardened = True
    with pytest.raises(PromiseBroken, match=r"pruner narrow never reached its hard phase \(step 8\)"):
        pruner.check_finished()
    structure_pruner.state.hardened = True
    pruner.check_finished()


def trained(**settings: Any) -> tuple[Any, Pruner, Iterator[int]]:
    """(engine, pruner, the steps: each is taken when it is asked for) of a run with gates on neurons and masks in the
    attention, on DeepSpeed's own engine."""
    weights = masks("*.self_attn.*.weight", 3, schedule={"name": "one_shot", "start": 3, "hard_from": 8})
    engine_keys = {f"engine__{key}": value for key, value in settings.items()}
    config = CASE.config().changed(pruners__weights=weights, **engine_keys)
    engine, pruner = one_rank.build_deepspeed(config, planted.student(CASE))

    def steps() -> Iterator[int]:
        for t, batches in enumerate(planted.micro_batches(CASE)):
            for number, batch in enumerate(batches):
                engine.backward(planted.loss(engine, batch, t))
                if number + 1 < planted.MICRO:
                    engine.step()
            pruner.step(t)
            yield t

    return engine, pruner, steps()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_removed_weight_that_is_alive_is_found(dtype: str) -> None:
    """In the master and in the forward copy; and both agree as soon as gates are folded."""
    with one_rank.deepspeed_alone():
        engine, pruner, steps = trained(zero_stage=1, dtype=dtype)
        (structure_pruner,), (weight_pruner,), layout = pruner.structure_pruners, pruner.weight_pruners, pruner.layout
        for t in steps:
            if t == 7:  # the gates are hard from here on
                assert structure_pruner.hardened and not weight_pruner.hardened
                for name, p in engine.module.named_parameters():
                    master = layout.assemble(name, layout.pieces(name), torch.float32)
                    assert torch.equal(p.detach().flatten(), master.to(p.dtype)), name
        pruner.check()
        pruner.check_finished()
        state = weight_pruner.states[0]
        segment = state.shard.segments[-1]
        assert state.keep is not None and segment.offset > 0
        masked = int((state.keep[segment.part] == 0).nonzero()[0])
        unit = int((~structure_pruner.state.keep[: structure_pruner.units.sizes[0]]).nonzero()[0])
        shard, neurons = layout._places["model.layers.0.mlp.up_proj.weight"][0]
        places = [
            (state.shard.view, segment.offset + masked, "pruner weights: 1 pruned weights are not zero"),
            (layout.forward_segment(segment), masked, "pruner weights: 1 pruned weights are not zero"),
            (shard.view, neurons.offset + unit * neurons.shape[1], "1 weights of units that pruner gates has removed"),
        ]
        for weights, index, sentence in places:
            assert not weights[index]
            weights[index] = 0.5
            with pytest.raises(PromiseBroken, match=sentence):
                pruner.check()
            weights[index] = 0.0
        pruner.check()


@pytest.mark.parametrize("more", [-0.25, 0.25])
def test_a_final_selection_that_misses_the_budget_ends_the_run(more: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few weights are as wrong as too many."""
    schedule = {"name": "one_shot", "start": 0, "hard_from": 1}
    weights = masks("*.q_proj.weight", granularity="weight", scope="matrix", schedule=schedule)
    config = CASE.config().changed(pruners={"weights": weights})
    engine, pruner = one_rank.build(config, planted.student(CASE))
    (weight_pruner,) = pruner.weight_pruners
    weight_pruner.begin(0)
    select = type(weight_pruner.granularity).select
    monkeypatch.setattr(
        type(weight_pruner.granularity), "select", lambda self, runs, target, *a: select(self, runs, target + more, *a)
    )
    asked = weight_pruner.target_weights
    with pytest.raises(
        PromiseBroken, match=re.escape(f"and not the {asked} that its budget of 0.5 asks for (")
    ) as told:
        weight_pruner.begin(1)
    assert f"({int(2 * more * asked):+d})" in str(told.value)


def test_the_norm_is_of_all_ranks() -> None:
    """Three more ranks with the same gradients: the norm is twice as large."""
    engine, pruner = one_rank.build(CASE.config(), planted.student(CASE))
    engine.backward(planted.loss(engine, planted.micro_batches(CASE)[0][0], 0))
    alone = float(pruner.masked_norm())
    pruner.layout.comm = SimpleNamespace(sum=lambda tensor: 4 * tensor)  # type: ignore[assignment]
    assert float(pruner.masked_norm()) == pytest.approx(2 * alone, rel=1e-6)
    total = torch.cat([p.grad.flatten() for p in engine.module.parameters()]).norm()  # type: ignore[union-attr]
    assert alone == pytest.approx(float(total), rel=1e-6)
