"""Masks in one process against the naive implementation, step by step; what ranks add has tests on ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pat.integrations import waiting
from pat.pruning.pruner import Pruner
from pat.schema import Config, PrunerConfig
from pat.zero import engine as ds
from tests import one_rank, oracle

STEPS, MICRO, LR, DECAY, MAX_NORM = 12, 2, 0.02, 0.2, 0.1
PRUNED = ["0.weight", "2.weight"]
CRITERIA: dict[str, dict[str, Any]] = {
    "movement": {"prior": 0.05},
    "magnitude": {},
    "taylor": {"decay": 0.7},
    "soft_movement": {"rate": 500.0, "final_lambda": 4.0, "prior": None},
}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def micro_batches(t: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(t)
    return [(torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(MICRO)]


def loss(forward: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (forward(batch[0]) - batch[1]).square().mean()


def config(criterion: str, scope: Any, schedule: dict[str, Any]) -> Config:
    weights = PrunerConfig(
        params=["*.weight"], exclude=["4.weight"], granularity="weight", scope=scope,
        criterion={"name": criterion, **CRITERIA[criterion]}, budget={"name": "sparsity", "sparsity": 0.6},
        schedule=schedule,
    )  # fmt: skip
    return Config().changed(
        train__num_steps=STEPS, engine__zero_stage=0, engine__dtype="fp32", engine__kernels="eager",
        engine__gradient_clipping=MAX_NORM, optim__lr=LR, optim__weight_decay=DECAY, optim__implementation="loop",
        pruners__weights=weights,
    )  # fmt: skip


def expected(made: Config, pruner: Pruner) -> list[oracle.Record]:
    (weight_pruner,) = pruner.weight_pruners
    criterion, scope = weight_pruner.criterion, made.pruners["weights"].scope
    options = {key: value for key, value in CRITERIA[criterion.name].items() if key != "final_lambda"}
    settings = oracle.Settings(
        sparsity=0.6, criterion=criterion.name, scope=scope, lr=LR, weight_decay=DECAY, max_norm=MAX_NORM,
        penalty=lambda progress: 4.0 * progress**3, **options,
    )  # fmt: skip
    return oracle.run(model, loss, [micro_batches(t) for t in range(STEPS)], PRUNED, weight_pruner.timeline, settings)


def assert_as_expected(made: Config, trained: nn.Module, engine: Any, pruner: Pruner) -> None:
    """Every step of a run against the naive implementation."""
    (weight_pruner,) = pruner.weight_pruners
    assert list(weight_pruner.shapes) == PRUNED
    for record in expected(made, pruner):
        t = record.step
        for number, batch in enumerate(micro_batches(t)):
            engine.backward(loss(engine, batch))
            if number + 1 < MICRO:
                engine.step()
        stats = pruner.step(t)
        assert float(stats.norm) == pytest.approx(record.norm, rel=1e-5), t
        assert stats.phase["weights"] == weight_pruner.timeline.phase(t)
        for name, p in trained.named_parameters():
            torch.testing.assert_close(p.detach(), record.weights[name], rtol=0, atol=1e-6, msg=f"{name}, step {t}")
        pruned = 0
        for state, segment in [(held, each) for held in weight_pruner.states for each in held.shard.segments]:
            flags, scores = record.masks[segment.name], record.scores[segment.name]
            keep = torch.ones(segment.numel) if state.keep is None else state.keep[segment.part]
            assert torch.equal(keep.bool().view(flags.shape), flags), t
            pruned += int((~flags).sum())
            if weight_pruner.criterion.needs_score and t < weight_pruner.timeline.hard_from:
                assert state.score is not None
                found = state.score[segment.part].view(scores.shape)
                torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-7)
            if t >= weight_pruner.timeline.hard_from:
                assert state.dense is None and state.score is None
        assert weight_pruner.num_pruned == pruned
    pruner.check()
    pruner.check_finished()
    assert pruner.totals.sparsity == pytest.approx(0.6, abs=1 / 168) and pruner.phase(t) == "hard"


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("scope", "schedule"),
    [
        ("global", {"name": "cubic", "start": 2, "end": 7, "hard_from": 9, "select_every": 2}),
        ("matrix", {"name": "cubic", "start": 0, "end": 8}),
    ],
)
def test_masks_scores_and_weights_are_those_of_the_naive_implementation(
    criterion: str, scope: str, schedule: dict[str, Any]
) -> None:
    if schedule["start"] == 0 and criterion != "magnitude":
        schedule = schedule | {"start": 1}  # there is no evidence yet
    made, trained = config(criterion, scope, schedule), model()
    engine, pruner = one_rank.build(made, trained, MICRO)
    assert_as_expected(made, trained, engine, pruner)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_on_deepspeeds_own_engine_they_are_the_same(scope: str, offload: bool) -> None:
    """ZeRO 1, where both matrices lie in one flat shard; offloaded, their gradients are one piece. Would catch: a piece
    of a shard that is taken for another, and DeepSpeed's own norm, which counts the gradients of pruned weights."""
    made = config("movement", scope, {"name": "cubic", "start": 2, "end": 7, "hard_from": 9, "select_every": 2})
    made = made.changed(
        engine__zero_stage=1, engine__world_size=1, engine__offload_optimizer=offload,
        train__global_batch_size=MICRO, train__micro_batch_size=1,
    )  # fmt: skip
    trained = model()
    with one_rank.deepspeed_alone():
        engine, pruner = one_rank.build_deepspeed(made, trained)
        assert pruner.layout.name == "zero12"
        assert [len(state.shard.segments) for state in pruner.weight_pruners[0].states] == [2]
        assert_as_expected(made, trained, engine, pruner)


def test_attached_to_another_trainer_masks_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: gradients that are clipped twice, by norms with and without what is masked; decay that is lost."""
    import deepspeed

    from pat.integrations import attach

    made = config("movement", "global", {"name": "cubic", "start": 2, "end": 7, "hard_from": 9})

    def initialize(model: Any = None, optimizer: Any = None, config: Any = None, config_params: Any = None) -> Any:
        return one_rank.PlainEngine(model, optimizer, MICRO, config["gradient_clipping"]), optimizer, None, None

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    monkeypatch.setattr(waiting, "_waiting", [])  # others of this process
    ours, theirs = model(), model()
    engine, pruner = one_rank.build(made, ours, MICRO)
    settings = {k: v for k, v in vars(made.pruners["weights"]).items() if v and k != "masked_grad"}
    pruning = attach(theirs, {"pruners": {"weights": settings}, "kernels": "eager"}, num_steps=STEPS)
    groups = [group | {"lr": LR} for group in ds.param_groups(theirs, made.optim, {})]
    optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    given = {"gradient_clipping": MAX_NORM, "zero_optimization": {"stage": 0}}
    other, *_ = deepspeed.initialize(model=theirs, optimizer=optimizer, config=given)
    assert deepspeed.initialize is initialize
    for t in range(STEPS):
        for each, step in ((engine, lambda t=t: pruner.step(t)), (other, other.step)):
            for number, batch in enumerate(micro_batches(t)):
                each.backward(loss(each, batch))
                if number + 1 < MICRO:
                    each.step()
            step()
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, its), t
    pruning.check()
    assert pruning.figures()["pruning/phase"] == "hard" and pruning.pruner is not None
    assert pruning.figures()["pruning/target"] == 0.6
    assert pruning.figures()["pruning/sparsity"] == pruner.totals.sparsity
