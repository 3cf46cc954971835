"""Gates that every rank holds whole are compared: where flags are chosen, and at every save."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pat.pruning.structures.agreement import check_agreement
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.types import PromiseBroken
from pat.schema import PrunerConfig
from tests import models as small
from tests.thread_ranks import run_ranks

SETTINGS: dict[str, Any] = {
    "structures": ["ffn"],
    "gate": "taylor",
    "budget": {"name": "shape", "keep": {"ffn": 64}},
    "schedule": {"name": "cubic", "start": 0, "end": 8},
}
MODEL = small.model("llama")


@pytest.mark.parametrize("kind", ["score", "keep", "z", "z_mean"])
def test_one_bit_on_one_rank_is_found_where_flags_are_chosen_and_at_saves(kind: str) -> None:
    def work(comm: Any) -> list[str]:
        structure_pruner = StructurePruner("narrow", PrunerConfig(**SETTINGS), MODEL, num_steps=12, seed=0)
        layout: Any = SimpleNamespace(world=comm, comm=comm, device=torch.device("cpu"))
        structure_pruner.bind(layout)
        structure_pruner.state.score = torch.arange(len(structure_pruner.state.z)).float()
        structure_pruner.check()
        structure_pruner._select(1, 0.5)
        if comm.rank == 2:
            tensor = structure_pruner.history.mean if kind == "z_mean" else getattr(structure_pruner.state, kind)
            tensor[7] = (not tensor[7]) if kind == "keep" else torch.nextafter(tensor[7], torch.tensor(9.0))
        said = []
        for what in (structure_pruner.check, lambda: structure_pruner._select(2, 0.5)):
            try:
                what()
                said.append("agreed")
            except PromiseBroken as error:
                said.append(str(error))
        return said

    found, _ = run_ranks(3, work)
    assert found[0] == found[1] == found[2], found
    assert "the gates of pruner narrow differ between rank 0 and rank 2, so each" in found[0][0]
    assert found[0][1] == (found[0][0] if kind in ("score", "z", "z_mean") else "agreed")  # flags are chosen anew


def test_order_and_not_a_number_do_not_matter() -> None:
    def work(comm: Any) -> None:
        items = [("a", torch.tensor([float("nan"), -0.0])), ("b", torch.tensor(3))]
        check_agreement("they", dict(items if comm.rank else items[::-1]), comm)

    assert run_ranks(4, work)[0] == [None] * 4
