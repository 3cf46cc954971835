"""A selection from scores that say nothing is an error: before training where the config shows it, else at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.common.comm import LOCAL
from pat.pruning import registry, ties
from pat.pruning.gates import OF_NO_STEP, CalibratedGate, Learned
from pat.pruning.pruner import Pruner
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.matrices import Matrices
from pat.pruning.weights.pruner import WeightPruner
from pat.pruning.weights.ties import tied_matrices
from pat.schema import Config, PrunerConfig
from pat.zero.layouts import Segment, Shard
from tests import models as small
from tests.thread_ranks import run_ranks

STEPS = 20
SHAPES = {"a": (8, 10), "b": (4, 10)}
AT_ONCE = [
    {"name": "one_shot", "start": 0},
    {"name": "linear", "start": 0, "end": 8, "initial": 0.2},
    {"name": "cubic", "start": 0, "end": 0},
]
LATER = [{"name": "one_shot", "start": 3}, {"name": "linear", "start": 0, "end": 8}]


def weight_pruner(criterion: Any, schedule: dict[str, Any], granularity: Any = "weight", **more: Any) -> WeightPruner:
    config = PrunerConfig(
        params=["*"], granularity=granularity, criterion=criterion, schedule=schedule,
        budget={"name": "sparsity", "sparsity": 0.5}, **more,
    )  # fmt: skip
    return WeightPruner("weights", config, Matrices(SHAPES), STEPS, 0, "eager")


@pytest.mark.parametrize("schedule", AT_ONCE)
@pytest.mark.parametrize(
    "name", [*small.elementwise_criteria(), "movement without a prior", "soft_movement without a prior"]
)
def test_criteria_without_evidence_are_refused_before_training(name: str, schedule: dict[str, Any]) -> None:
    """Would catch any criterion whose first selection is decided by the index alone."""
    criterion = {"name": name.split()[0], "prior": 0.0} if " " in name else name
    built = registry.build("criterion", criterion)
    knows_nothing = built.needs_score and name not in ("movement", "soft_movement")
    assert ties.starts_equal(built) == knows_nothing
    by_threshold = built.threshold is not None and schedule["name"] == "linear"  # its budget counts at the end only
    if knows_nothing and not by_threshold:
        with pytest.raises(
            ValueError, match="pruners.weights removes weights at step 0, before .* has seen a gradient"
        ):
            weight_pruner(criterion, schedule)
    else:
        weight_pruner(criterion, schedule)
    for later in LATER:
        weight_pruner(criterion, later)


def structure_pruner(name: str, schedule: dict[str, Any]) -> Any:
    structures, keep = (["layers"], {"layers": 2}) if "similarity" in name else (["ffn"], {"ffn": 64})
    narrow = PrunerConfig(structures=structures, gate=name, schedule=schedule, budget={"name": "shape", "keep": keep})
    pruner = Pruner(Config().changed(train__num_steps=STEPS, pruners__narrow=narrow))
    pruner.attach(small.model("llama"))
    return pruner.structure_pruners[0]


@pytest.mark.parametrize("name", registry.names("gate"))
def test_gates_without_evidence_are_refused_before_training(name: str) -> None:
    """Also those that learn, where no soft step comes before the last choice."""
    method = registry.build("gate", name)
    for schedule in ({"name": "one_shot", "start": 0}, {"name": "linear", "start": 0, "end": 8, "initial": 0.05}):
        learns_first = isinstance(method, Learned) and schedule["name"] == "linear"
        if isinstance(method, CalibratedGate) and schedule["name"] == "linear":
            continue  # it cuts once
        if method.needs in OF_NO_STEP or learns_first:
            structure_pruner(name, schedule)
            continue
        learned = "pruners.narrow.gate=.* learns which units go between schedule.start and hard_from"
        ranked = "pruners.narrow selects units at step 0, before its gate .* has learned"
        with pytest.raises(ValueError, match=learned if isinstance(method, Learned) else ranked):
            structure_pruner(name, schedule)
    if isinstance(method, Learned):  # dense steps before it are no soft phase: nothing of them is in the scores
        with pytest.raises(ValueError, match="which are both step 3: give schedule.hard_from a later step"):
            structure_pruner(name, {"name": "one_shot", "start": 3})
    if not isinstance(method, CalibratedGate):
        structure_pruner(name, {"name": "one_shot", "start": 3, "hard_from": 5})
        structure_pruner(name, {"name": "linear", "start": 0, "end": 8})


def bound(pruner: WeightPruner, weights: dict[str, Tensor], scores: dict[str, Tensor] | None = None) -> WeightPruner:
    """With both matrices in one shard, and scores as if steps had been."""
    segments, at = [], 0
    for name, shape in SHAPES.items():
        segments.append(Segment(name, shape, 0, weights[name].numel(), 0, at))
        at += weights[name].numel()
    flat = torch.cat([weights[name].flatten() for name in SHAPES])
    layout: Any = SimpleNamespace(comm=LOCAL, world=LOCAL, shards=[Shard(0, 0, flat, tuple(segments))])
    pruner.bind(layout)
    if scores is not None:
        pruner.states[0].score = torch.cat([scores[name].flatten() for name in SHAPES])
    return pruner


def normal(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


SOFT = {"name": "one_shot", "start": 3, "hard_from": 9}
PAPER = {"name": "movement", "prior": 0.0}


@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_a_matrix_without_evidence_stops_the_selection(scope: str) -> None:
    """One matrix has had no gradient: its weights would go, or stay, by their index."""
    scores = normal(1)
    scores["b"].zero_()
    with pytest.raises(ValueError, match="pruners.weights: all scores of b are equal"):
        bound(weight_pruner(PAPER, SOFT, scope=scope), normal(0), scores).begin(3)


def test_a_matrix_of_zeros_is_told_in_a_sentence() -> None:
    weights = normal(0)
    weights["b"].zero_()
    with pytest.raises(ValueError, match="all scores of b are equal.*all weights are 0"):
        bound(weight_pruner("magnitude", SOFT, scope="matrix"), weights).begin(3)


def test_ties_of_some_are_legal() -> None:
    scores = normal(1)
    scores["a"][:3] = 0.0
    scores["b"][:2] = 0.0
    pruner = bound(weight_pruner(PAPER, SOFT), normal(0), scores)
    pruner.begin(3)
    assert pruner.num_pruned == 60


def test_an_empty_matrix_has_to_be_allowed() -> None:
    weights = normal(0)
    weights["b"] *= 1e-3
    with pytest.raises(ValueError, match="would remove every weight of b: .*allow_empty_matrices"):
        bound(weight_pruner("magnitude", SOFT), weights).begin(3)
    allowed = bound(weight_pruner("magnitude", SOFT, allow_empty_matrices=True), weights)
    allowed.begin(3)
    assert allowed.num_pruned == 60


@pytest.mark.parametrize(("zeros", "whole"), [("b", True), ("a", False)])
def test_a_matrix_that_may_be_empty_may_go_whole_whatever_its_scores(zeros: str, whole: bool) -> None:
    """60 weights go: all 40 of b, where no index decides, or 60 of the 80 of a, where it would."""
    weights = normal(0)
    weights[zeros].zero_()
    pruner = bound(weight_pruner("magnitude", SOFT, allow_empty_matrices=True), weights)
    if whole:
        pruner.begin(3)
        assert pruner.num_pruned == 60 and pruner.states[0].keep is not None and not pruner.states[0].keep[80:].any()
        return
    with pytest.raises(ValueError, match="all scores of a are equal"):
        pruner.begin(3)


def test_what_gates_have_emptied_needs_no_evidence() -> None:
    """2:4 inside what gates leave: the matrices of a dropped layer are all 0 and have nothing to lose."""
    weights = normal(0)
    weights["b"].zero_()
    pruner = bound(weight_pruner("magnitude", SOFT, scope="matrix"), weights)
    pruner.emptied_before = lambda: {"b"}
    pruner.begin(3)

    narrow = PrunerConfig(
        structures=["layers"], gate="taylor", schedule=SOFT, budget={"name": "shape", "keep": {"layers": 2}}
    )
    two_four = PrunerConfig(
        params=["*.mlp.*.weight"], granularity={"name": "n_of_m", "n": 2, "m": 4}, criterion="magnitude",
        schedule={"name": "one_shot", "start": 9}, budget={"name": "sparsity", "sparsity": 0.5},
    )  # fmt: skip
    both = Pruner(Config().changed(train__num_steps=STEPS, pruners__narrow=narrow, pruners__weights=two_four))
    both.attach(small.model("llama"))
    assert both.weight_pruners[0].emptied_before() == set()
    both.structure_pruners[0].state.keep[1] = False
    gone = {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert both.weight_pruners[0].emptied_before() == gone


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ties_are_found_whatever_the_cut(num_ranks: int) -> None:
    """A matrix in which one weight of the last rank differs is not tied; -0.0 equals 0.0."""
    matrices = {"a": torch.zeros(90), "b": torch.full((60,), 2.5), "c": torch.zeros(30), "d": normal(0)["a"].flatten()}
    matrices["a"][-1], matrices["c"][::2] = 1e-30, -0.0

    def work(comm: Any) -> set[str]:
        segments = []
        for name, values in matrices.items():
            width = -(-values.numel() // num_ranks)
            part = values[comm.rank * width : (comm.rank + 1) * width].clone()
            if part.numel():
                keep = torch.ones_like(part, dtype=torch.uint8)
                segments.append(ScoredSegment(name, (values.numel(),), comm.rank * width, part, keep))
        return tied_matrices(segments, list(matrices), comm)

    results, _ = run_ranks(num_ranks, work)
    assert results == [{"b", "c"}] * num_ranks


@pytest.mark.parametrize("structures", [["ffn"], ["layers"]])
def test_sites_without_evidence_stop_the_selection(structures: list[str]) -> None:
    """A site of which no gate has a gradient, and layers that all have none."""
    keep = {"ffn": 64} if structures == ["ffn"] else {"layers": 2}
    narrow = PrunerConfig(structures=structures, gate="taylor", schedule=SOFT, budget={"name": "shape", "keep": keep})
    pruner = Pruner(Config().changed(train__num_steps=STEPS, pruners__narrow=narrow))
    pruner.attach(small.model("llama"))
    structure_pruner = pruner.structure_pruners[0]
    structure_pruner.bind(SimpleNamespace(world=LOCAL))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    structure_pruner.state.score = torch.rand(structure_pruner.state.score.shape, generator=generator)
    structure_pruner._select(3, 1.0)
    structure_pruner.state.score[-structure_pruner.units.sizes[-1] :] = 0.0
    if structures == ["layers"]:
        structure_pruner._select(3, 1.0)  # one layer alone may have no evidence: it is ranked among others
        structure_pruner.state.score.zero_()
    with pytest.raises(ValueError, match="pruners.narrow: all scores of .* are equal"):
        structure_pruner._select(3, 1.0)


@pytest.mark.parametrize("block", ["layers", "mlp_layers"])
def test_neurons_of_a_closed_layer_need_no_evidence(block: str) -> None:
    """They get evidence 0 until all of their moving averages are equal. Those of an open layer must still differ."""
    keep = {block: 2, "ffn": 64}
    narrow = PrunerConfig(
        structures=[block, "ffn"], gate="taylor", schedule=SOFT,
        budget={"name": "shape", "keep": keep, "hf_compatible": False},
    )  # fmt: skip
    pruner = Pruner(Config().changed(train__num_steps=STEPS, pruners__narrow=narrow))
    pruner.attach(small.model("llama"))
    narrowed = pruner.structure_pruners[0]
    narrowed.bind(SimpleNamespace(world=LOCAL))  # type: ignore[arg-type]
    scores = torch.rand(narrowed.state.score.shape, generator=torch.Generator().manual_seed(0)) + 1.0
    by_site = narrowed.units.split(scores)  # views
    layers, neurons = ([v for s, v in by_site.items() if s.startswith(f"{kind}:")] for kind in (block, "ffn"))
    for values in (layers[1], neurons[1]):
        values.zero_()
    narrowed.state.score = scores
    narrowed._select(3, 1.0)
    assert narrowed.counts() == {block: [1, 0, 1], "ffn": [64, 64, 64]}
    neurons[2].zero_()
    with pytest.raises(ValueError, match="all scores of ffn:model.layers.2.mlp are equal"):
        narrowed._select(3, 1.0)
