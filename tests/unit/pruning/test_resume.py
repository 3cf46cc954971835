"""Saved in the middle of a run and loaded into a pruner, fresh or past it: the same state, and then the same bits."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.common.hashing import unpack_keep
from pat.pruning import state_keys
from pat.pruning.pruner import Pruner
from pat.pruning.structures.gate_history import GateHistory
from pat.schema import Config, PrunerConfig
from tests import one_rank, planted
from tests.planted import SMOOTHED, STEPS, Case

PROBE = {"input_ids": torch.arange(1, planted.TOKENS + 1)[None]}
CASES = {
    "taylor": Case("taylor", ("ffn",), options={"decay": 0.8, "fade": 4}),
    "l0": Case("l0", ("ffn",), options=SMOOTHED),
}
MASKS: dict[str, dict[str, Any]] = {  # the masks of step 0 stay until the last step of the soft phase
    "magnitude": {"name": "one_shot", "start": 0, "hard_from": 8, "select_every": 100},
    "movement": {"name": "cubic", "start": 2, "end": 7, "hard_from": 8, "select_every": 2},
}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


@dataclass(frozen=True)
class Saved:
    """What a reader gives of a checkpoint whose pieces are whole parameters."""

    tensors: Mapping[str, Tensor]

    def gates(self, pruner: str) -> dict[str, Tensor]:
        return {name: self.tensors[key].clone() for name, key in state_keys.gates_in(self.tensors, pruner).items()}

    def pruner(self, kind: str, pruner: str, name: str, start: int, numel: int) -> Tensor:
        stored = self.tensors[state_keys.of_mask(pruner, kind, name, start)]
        return torch.as_tensor(unpack_keep(stored, numel)) if kind == state_keys.KEEP else stored


def config(gate: str, criterion: str) -> Config:
    """Gates on neurons, and masks in the attention of the same model."""
    weights = PrunerConfig(
        params=["*.self_attn.*.weight"], granularity="weight", scope="global", criterion=criterion,
        budget={"name": "sparsity", "sparsity": 0.6}, schedule=MASKS[criterion],
    )  # fmt: skip
    return CASES[gate].config().changed(pruners__weights=weights)


def step(engine: Any, pruner: Pruner, batches: list[dict[str, Tensor]], t: int) -> dict[str, Any]:
    losses = []
    for number, batch in enumerate(batches):
        loss = planted.loss(engine, batch, t)
        engine.backward(loss)
        losses.append(loss.item())
        if number + 1 < planted.MICRO:
            engine.step()
    stats = pruner.step(t)
    return {"losses": losses, "norm": float(stats.norm), "sparsity": stats.sparsity, "figures": stats.figures}


def assert_equal(found: Pruner, expected: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    tensors, shared = found.state()
    assert shared == expected[1]
    assert tensors.keys() == expected[0].keys()
    for key, value in expected[0].items():
        assert tensors[key].dtype == value.dtype and torch.equal(tensors[key], value), key


def snapshot(pruner: Pruner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, shared = pruner.state()
    return {key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(shared))


def answers(model: Any) -> Tensor:
    """Of an evaluation."""
    with torch.no_grad():
        found = model.eval()(**PROBE).logits
    model.train()
    return found


@pytest.mark.parametrize("past", [0, 7, STEPS], ids=["into a fresh one", "back from soft", "back from hard"])
@pytest.mark.parametrize("at", [1, 5, 9], ids=["dense", "soft", "hard"])
@pytest.mark.parametrize(("gate", "criterion"), [("taylor", "magnitude"), ("l0", "movement")])
def test_a_loaded_pruner_goes_on_with_the_same_bits(gate: str, criterion: str, at: int, past: int) -> None:
    """Would catch: anything that is not in the state, that is not taken out of it, or that outlives a load."""
    case = CASES[gate]
    data = planted.micro_batches(case)
    model = planted.student(case)
    engine, pruner = one_rank.build(config(gate, criterion), model, planted.MICRO)
    for t in range(at):
        step(engine, pruner, data[t], t)
    tensors, shared = snapshot(pruner)
    assert json.loads(json.dumps(shared["weights"]))["selected_at"] == {
        ("magnitude", 1): 0, ("magnitude", 5): 0, ("magnitude", 9): 8,
        ("movement", 1): -1, ("movement", 5): 4, ("movement", 9): 8,
    }[criterion, at]  # fmt: skip
    hashes, totals = pruner.hashes(), (pruner.totals.num_pruned, pruner.totals.sparsity)
    assert (totals[0] > 0) == (shared["weights"]["num_pruned"] + shared["gates"]["num_pruned"] > 0)
    fresh = planted.student(case)
    other, loaded = one_rank.build(config(gate, criterion), fresh, planted.MICRO)
    for t in range(past):
        step(other, loaded, data[t], t)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    other.optimizer.load_state_dict(copy.deepcopy(engine.optimizer.state_dict()))
    other.micro_steps, other.global_steps = engine.micro_steps, engine.global_steps

    loaded.load_state(Saved(tensors), shared)
    assert_equal(loaded, (tensors, shared))
    assert loaded.hashes() == hashes
    assert (loaded.totals.num_pruned, loaded.totals.sparsity) == totals
    assert torch.equal(answers(fresh), answers(model)), "an evaluation sees other gates"
    for t in range(at, STEPS):
        assert step(other, loaded, data[t], t) == step(engine, pruner, data[t], t), t
        assert_equal(loaded, snapshot(pruner))
        for (name, mine), theirs in zip(fresh.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(mine, theirs), f"{name}, step {t}"
    loaded.check()
    loaded.check_finished()


def test_gates_were_open_before_a_checkpoint_without_their_history() -> None:
    """Would catch: means of a run that is undone."""
    history = GateHistory(torch.ones(2))
    history.add(torch.tensor([0.0, 0.5]), (0.9, 0.999))
    history.load({}, {"begun": 3})
    assert history.steps == 3
    assert all(torch.equal(mean, torch.ones(2)) for mean in history.tensors().values())
