"""Hidden states are compared only of layers that are there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pat.pruning.schedules import Ramp
from pat.pruning.structures.depth import dropped_layers
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import DistillConfig, PrunerConfig
from pat.tasks import base
from pat.training.distill import Distiller, hidden_loss
from tests import models as small


def gates(structures: list[str], keep: dict[str, int], family: str = "llama") -> StructurePruner:
    settings: dict[str, Any] = {
        "structures": structures,
        "gate": "taylor",
        "budget": {"name": "shape", "keep": keep, "hf_compatible": False},
        "schedule": {"name": "cubic", "start": 0, "end": 8},
    }
    return StructurePruner("depth", PrunerConfig(**settings), small.model(family), num_steps=12, seed=0)


@pytest.mark.parametrize("phase", ["dense", "soft", "hard"])
def test_layers_whose_gate_is_closed_are_dropped(phase: str) -> None:
    structure_pruner = gates(["layers", "ffn"], {"layers": 2, "ffn": 64})
    z = torch.ones_like(structure_pruner.state.z)
    z[1], z[2], z[3:] = 0.0, 0.3, 0.0  # the second layer is closed, the third half open, and every neuron is gone
    if phase == "soft":
        structure_pruner.multiplied = z
    if phase == "hard":
        structure_pruner.state.keep, structure_pruner.state.hardened = z > 0, True
    assert dropped_layers([structure_pruner]) == (set() if phase == "dense" else {1})


@pytest.mark.parametrize("family, left", [("llama", []), ("bert", ["layers.1"])])
def test_layers_that_only_hooks_pass_by_are_known(family: str, left: list[str]) -> None:
    """norm(h + 0) is h in no post-norm encoder: zeros in its stock class are another model."""
    made = gates(["layers"], {"layers": 2}, family)
    keep = torch.ones_like(made.state.keep)
    assert made.left_to_hooks == []
    keep[1] = False
    made.state.keep = keep
    assert [name.partition("/")[0] for name in made.left_to_hooks] == [made.sites[1].name] * len(left)


def test_a_layer_without_its_sublayers_is_dropped() -> None:
    """Also where two pruners have taken them."""
    attention, mlp = gates(["attention_layers"], {"attention_layers": 2}), gates(["mlp_layers"], {"mlp_layers": 2})
    attention.multiplied, mlp.multiplied = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    assert dropped_layers([attention, mlp]) == {1}
    assert dropped_layers([attention]) == dropped_layers([]) == set()


def test_dropped_layers_are_not_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.randn(2, 4, 6, generator=generator) for _ in range(4)] for _ in range(2))
    counts = torch.ones(2, 4)
    left = hidden_loss(ours, theirs, counts, [0, 1, 2], {1})
    expected = sum((ours[i] - theirs[i]).square().mean() for i in (1, 3)) / 2
    torch.testing.assert_close(left, expected)
    assert float(hidden_loss(ours, theirs, counts, [0], {0})) == 0.0


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_student_that_is_the_teacher_but_for_a_dropped_layer_is_right_up_to_it(chunk: int | None) -> None:
    """Of three layers the second goes: the first is the teacher's own, so nothing pulls at it; before it was pulled
    towards the teacher's second layer."""
    teacher = small.model("llama")
    student = copy.deepcopy(teacher)
    student.model.layers[1].register_forward_hook(lambda module, args, output: args[0])
    ids = small.tokens(2, 9)
    task: Any = base.build({"name": "causal_lm", "loss_chunk_tokens": chunk})
    config = DistillConfig(teacher="t", weight=0.0, hidden_weight=1.0)
    sums = []
    for dropped in (set(), {1}, {1, 2}):
        distiller = Distiller(teacher, task, config, Ramp(0, 0), [0, 1, 2], lambda dropped=dropped: dropped)
        distiller.loss(student, {"input_ids": ids, "labels": ids}, 0)
        sums.append(float(distiller._sums[1]))
    assert sums[0] > 0.0 and sums[1] > 0.0 and sums[2] == 0.0
