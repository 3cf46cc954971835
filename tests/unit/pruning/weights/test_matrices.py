"""Which matrices a weight pruner takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pat.common.comm import LOCAL
from pat.pruning.weights.matrices import Matrices
from pat.pruning.weights.pruner import WeightPruner
from pat.schema import PrunerConfig
from pat.zero.layouts import Segment, Shard
from tests import models
from tests.sets import thinned

OUTSIDE = ("embed", "wte", "wpe", "lm_head", "cls", "vocab_", "pooler", "predictions", "decoder.weight", "head.dense")


@pytest.mark.parametrize(("kind", "variant"), thinned(models.cases(), 4))
def test_all_linear_is_every_matrix_inside_the_layers_of_every_family(kind: str, variant: str) -> None:
    """Would catch embeddings, heads or norms that are taken, and projections that are missed."""
    model = models.model(kind, variant)
    matrices = Matrices.of(model)
    inside = [name for name, shape in matrices.shapes.items() if len(shape) == 2 and ".bias" not in name]
    expected = [name for name in inside if not any(word in name for word in OUTSIDE)]
    assert matrices.take(["all-linear"]) == expected and len(expected) >= 4 * models.LAYERS
    first = expected[0]
    assert matrices.take(["all-linear"], [first]) == expected[1:]
    assert matrices.take([first, "all-linear"]) == expected


def test_without_layers_all_linear_is_refused() -> None:
    matrices = Matrices.of(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"pruners.w.params=all-linear .* 0.weight|\*.weight"):
        matrices.check("pruners.w", ["all-linear"], [])


EXPERTS, HIDDEN, NEURONS = 3, 16, 24


def of_experts(kind: str) -> Any:
    """A model on the meta device whose MLPs are stacks of experts."""
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN, "intermediate_size": NEURONS, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 32, "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
    }  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


def pruner_of(
    matrices: Matrices, granularity: Any, scope: str = "matrix", at: int = 0, criterion: Any = "magnitude"
) -> WeightPruner:
    config = PrunerConfig(
        params=["*experts.*_proj"], granularity=granularity, scope=scope, criterion=criterion,
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "one_shot", "start": at, "hard_from": 9},
    )  # fmt: skip
    return WeightPruner("w", config, matrices, 20, 0, "eager")


@pytest.mark.parametrize(("kind", "transposed"), [("gpt_oss", True), ("llama4_text", True), ("mixtral", False)])
def test_experts_that_are_stored_inputs_first_are_known(kind: str, transposed: bool) -> None:
    """Would catch: 2:4 groups and blocks along the outputs. Biases of experts are no stack of matrices."""
    matrices = Matrices.of(of_experts(kind))
    experts = {name for name, shape in matrices.shapes.items() if len(shape) == 3 and "experts" in name}
    assert len(experts) == 2 and matrices.transposed == (experts if transposed else set())
    up, down = (matrices.as_map(next(name for name in experts if part in name)) for part in ("up_proj", "down_proj"))
    assert (up, down) == ((EXPERTS, 2 * NEURONS, HIDDEN), (EXPERTS, HIDDEN, NEURONS))
    for granularity in ({"name": "n_of_m", "n": 2, "m": 4}, {"name": "block", "rows": 2, "cols": 4}):
        if not transposed:
            pruner_of(matrices, granularity)
            continue
        with pytest.raises(ValueError, match=r"takes .*experts.down_proj, which is stored as \(in, out\)"):
            pruner_of(matrices, granularity)
    pruner_of(matrices, "weight")


@pytest.mark.parametrize("kind", ["gpt_oss", "mixtral", "llama4_text"])
def test_all_linear_takes_experts_whose_forward_is_known(kind: str) -> None:
    """Of the others calibration would take what goes into the whole module for the inputs of each, so it is refused."""
    matrices, known = Matrices.of(of_experts(kind)), kind != "llama4_text"
    experts = {name for name, shape in matrices.shapes.items() if len(shape) == 3 and "experts" in name}
    assert set(matrices.take(["all-linear"])) >= experts if known else set(matrices.stacked()) == experts
    assert matrices.routed == pytest.approx(1 / EXPERTS if known else 1.0)
    for criterion in ("wanda", "alps", {"name": "movement", "prior_score": "wanda"}):
        if known:
            pruner = pruner_of(matrices, "weight", at=3, criterion=criterion)
            assert pruner.calibration is not None and len(pruner.calibration.shapes) == 2 * EXPERTS
        else:
            with pytest.raises(ValueError, match="experts.* is several matrices in one, as some experts are"):
                pruner_of(matrices, "weight", at=3, criterion=criterion)


def test_experts_inside_of_a_module_without_a_config() -> None:
    matrices = Matrices.of(nn.ModuleDict({"inner": of_experts("mixtral")}))
    assert matrices.routed == 1.0 and any("experts" in name for name in matrices.linear)


class Experts(nn.Module):
    """Stacks of maps from 6 inputs to 4 outputs."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.up_proj = nn.Parameter(torch.randn(3, *((6, 4) if is_transposed else (4, 6))))


@pytest.mark.parametrize("inputs_first", [False, True])
def test_every_output_of_every_expert_loses_the_same_share(inputs_first: bool) -> None:
    """Scope row. Would catch: a ranking over the outputs of an expert, which leaves some of them without inputs."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": Experts(inputs_first)})
    pruner = pruner_of(Matrices.of(model), "weight", "row", at=3)
    ((name, weight),) = model.named_parameters()
    shape, flat = tuple(weight.shape), weight.detach().flatten().clone()
    shard = Shard(0, 0, flat, (Segment(name, shape, 0, 72, 0, 0),))
    layout: Any = SimpleNamespace(
        comm=LOCAL, world=LOCAL, shards=[shard], replicated=False,
        assemble=lambda name, pieces, dtype: torch.cat([piece.data for piece in pieces]).to(dtype),
    )  # fmt: skip
    pruner.bind(layout)
    pruner.begin(3)
    assert pruner.states[0].keep is not None
    keep, size = (
        each.view(shape).movedim(1 if inputs_first else 2, -1) for each in (pruner.states[0].keep, flat.abs())
    )
    assert torch.equal(keep.bool(), size >= size.topk(3).values[..., -1:]), "the three largest of six inputs"
