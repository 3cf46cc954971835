"""What gates are ranked by, against plain PyTorch: one example, or one token, after the other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pat.models import families
from pat.pruning import registry
from pat.pruning.comm import Comm
from pat.pruning.hooks import GatedForward
from tests.unit import small_models as small
from tests.unit.thread_ranks import run_ranks

CPU = torch.device("cpu")
STRUCTURES = ["ffn", "kv_groups", "layers", "attention_layers", "mlp_layers"]
ROWS, LENGTH = 4, 7


def method(name: str) -> Any:
    """A gate that looks at the last step only."""
    return registry.build("gate", {"name": name, "decay": 0.0})


def losses(model: Any, ids: Tensor) -> Tensor:
    """(B,) the mean loss of each row, all of its tokens to be found again."""
    logits = model(ids).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape).mean(1)


def example_gradients(model: Any, sites: list[Any], ids: Tensor, z: dict[str, Tensor]) -> Tensor:
    """(N, U) dL_b/dz, a forward and a backward for each row."""
    found = []
    for row in ids:
        leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
        with small.gated(model, sites, leaves):
            losses(model, row[None]).sum().backward()
        found.append(torch.cat([leaves[site.name].grad for site in sites]))  # type: ignore[misc]
    return torch.stack(found)


def on_ranks(model_type: str, structure: str, name: str, ids: Tensor, ranks: int, micro: int, z: Any) -> Tensor:
    """(U,) the score after one step of `ranks` ranks, whose loss is the mean over micro-batches of `micro` rows."""
    own = [small.model(model_type).train(False) for _ in range(ranks)]
    gate, scale = method(name), 8.0  # of the loss, as fp16 has it

    def work(world: Comm) -> Tensor:
        model = own[world.rank]
        forward = GatedForward(small.sites(families.anatomy(model), structure), model, gate.needs)
        forward.set(None if z is None else torch.cat(list(z.values())), None, CPU)
        batches = ids.chunk(ranks)[world.rank].split(micro)
        for batch in batches:
            (scale * losses(model, batch).mean() / len(batches)).backward()
        evidence = forward.evidence(world, scale)
        assert evidence is not None
        return gate.update(torch.zeros_like(evidence), evidence)

    scores, _ = run_ranks(ranks, work)
    for one, other in pairwise(scores):
        assert torch.equal(one, other)
    return scores[0]


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("model_type", families.families())
def test_fisher_and_taylor_take_every_example(model_type: str, structure: str, is_open: bool) -> None:
    """The mean square and the mean size of the examples' own gradients, however they are spread over micro-batches and
    ranks. Would catch: the square or the size of a mean, in which examples cancel; a wrong scale."""
    model, ids = small.model(model_type), small.tokens(ROWS, LENGTH)
    sites = small.sites(families.anatomy(model), structure)
    z = small.random_gates(sites, {s.name: torch.ones(s.num_units).bool() for s in sites}, seed=5)
    if is_open:
        z = {name: torch.ones_like(value) for name, value in z.items()}
    each = example_gradients(model, sites, ids, z)
    cancelled = 1 - each.mean(0).abs() / each.abs().mean(0)
    assert cancelled.mean() > 0.1, "examples have to differ"
    expected = {"fisher": each.square().mean(0), "taylor": each.abs().mean(0)}
    for name, wanted in expected.items():
        for ranks, micro in ((1, 4), (1, 1), (2, 1), (2, 2)):
            found = on_ranks(model_type, structure, name, ids, ranks, micro, z)
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-4 * float(wanted.max()))


@pytest.mark.parametrize("name", ["fisher", "taylor", "movement", "activation"])
def test_recomputed_activations_give_the_same_evidence(name: str) -> None:
    """Both kinds of activation checkpointing, to the bit. Would catch: a forward or a backward that counts twice."""
    gate = registry.build("gate", name)
    found = []
    for how in (None, False, True):
        model = small.model("llama").train()
        if how is not None:
            model.gradient_checkpointing_enable({"use_reentrant": how})
            model.enable_input_require_grads()
        forward = GatedForward(small.sites(families.anatomy(model), "ffn", "layers"), model, gate.needs)
        forward.set(torch.ones(sum(forward.sizes)), None, CPU)
        first, second = (losses(model, small.tokens(2, length)).mean() for length in (LENGTH, 5))
        (first + second).backward()  # both forwards before a backward, as with pairs of answers
        counted = [hook.sums[-1] for hook in forward.hooks if hook.sums is not None]
        assert len(set(map(float, counted))) <= 1
        found.append((forward.evidence(Comm(), 1.0), counted))
    for evidence, counted in found[1:]:
        assert torch.equal(evidence, found[0][0]) and counted == found[0][1]


def test_frozen_inputs_have_gates_with_gradients() -> None:
    """Only the head trains, as with optim.trainable: the gates of the first layers get evidence nevertheless."""
    model = small.model("llama").requires_grad_(False)
    for name in ("fisher", "taylor"):
        forward = GatedForward(small.sites(families.anatomy(model), "ffn"), model, method(name).needs)
        forward.set(torch.ones(sum(forward.sizes)), None, CPU)
        losses(model, small.tokens(2, LENGTH)).mean().backward()
        evidence = forward.evidence(Comm(), 1.0)
        assert evidence is not None and (evidence > 0).float().mean() > 0.9
        forward.remove()
