"""Gates of structures in one process against a naive implementation, on models where the right units are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pat.pruning import registry
from pat.pruning.gates import Ranked
from tests import gate_oracle, one_rank, planted
from tests.planted import Case

STRUCTURES = ("ffn", "kv_groups", "heads", "layers", "attention_layers", "mlp_layers")
METHODS = ("movement", "taylor", "fisher", "magnitude", "activation", "similarity")
OPTIONS: dict[str, dict[str, Any]] = {"movement": {"fade": 3}, "taylor": {"decay": 0.8, "fade": 4}}
CASES = [
    *(
        Case(method, (structure,), options=OPTIONS.get(method, {}))
        for method in METHODS
        for structure in STRUCTURES
        if method != "similarity" or structure == "layers"
    ),
    *(Case("taylor", ("ffn", "kv_groups"), budget) for budget in ("shape", "parameters", "flops", "memory")),
    *(Case("magnitude", ("ffn", "kv_groups"), budget) for budget in ("parameters", "flops", "memory")),
    *(Case("fisher", (structure,), "parameters") for structure in ("ffn", "layers", "mlp_layers")),
]


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def train(case: Case, loss_fn: Any = planted.loss) -> list[dict[str, Any]]:
    """The same run by pat: after each step its loss, norm, gates, flags, scores and weights."""
    model = planted.student(case)
    engine, pruner = one_rank.build(case.config(), model, planted.MICRO)
    (gate,) = pruner.gates
    found = []
    for t, micro_batches in enumerate(planted.micro_batches(case.shape, case.structures)):
        z, losses = gate.state.z.clone(), []
        for number, batch in enumerate(micro_batches):
            loss = loss_fn(engine, batch, t)
            engine.backward(loss)
            losses.append(loss.item())
            if number + 1 < planted.MICRO:
                engine.step()
        keep, score = gate.state.keep.clone(), gate.state.score
        stats = pruner.step(t)
        score = gate.state.score if case.method != "magnitude" else score
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        found.append(
            {
                "loss": sum(losses) / len(losses), "norm": float(stats.norm), "z": z, "keep": keep,
                "scores": score.clone(), "weights": weights,
            }
        )  # fmt: skip
    pruner.check()
    pruner.check_finished()
    return found


def assert_same(case: Case, records: list[gate_oracle.Record], found: list[dict[str, Any]]) -> None:
    """Flags equal, all else to rounding, at every step; except the weights at the hard step, which pat folds early."""
    for record, ours in zip(records, found, strict=True):
        where = f"{case}, step {record.step}"
        assert torch.equal(ours["keep"], planted.joined(case, record.keep)), where
        torch.testing.assert_close(ours["z"], planted.joined(case, record.z), rtol=0, atol=1e-6, msg=where)
        scores = planted.joined(case, record.scores)
        torch.testing.assert_close(ours["scores"], scores, rtol=1e-4, atol=1e-6 * float(scores.abs().max()), msg=where)
        assert ours["loss"] == pytest.approx(record.loss, abs=1e-5), where
        assert ours["norm"] == pytest.approx(record.norm, rel=1e-4), where


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_planted_units_stay_and_all_is_as_the_naive_implementation_says(case: Case) -> None:
    records, found = planted.expected(case), train(case)
    right = planted.joined(case, planted.right(case))
    assert torch.equal(planted.joined(case, records[-1].keep), right), "the oracle keeps others than were planted"
    assert torch.equal(found[-1]["keep"], right)
    assert_same(case, records, found)


def test_every_ranked_method_has_its_oracle() -> None:
    ranked = {name for name in registry.names("gate") if isinstance(registry.build("gate", name), Ranked)}
    assert ranked == set(METHODS)
    assert set(registry.names("structure")) == set(STRUCTURES)
