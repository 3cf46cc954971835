"""What gates are ranked by, against plain PyTorch: one example, or one token, after the other."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pat.common.comm import Comm
from pat.models import families
from pat.pruning import registry
from pat.pruning.structures.hooks import GatedForward
from pat.tasks.chat import Chat
from tests import models as small
from tests.sets import thinned
from tests.thread_ranks import run_ranks

CPU = torch.device("cpu")
STRUCTURES = [name for name in registry.names("structure") if name != "heads"]  # which share KV heads in most families
ROWS, LENGTH = 4, 7


def method(name: str) -> Any:
    """A gate method that looks at the last step only."""
    return registry.build("gate", {"name": name} | ({"decay": 0.0} if name in ("fisher", "taylor") else {}))


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


def on_ranks(
    model_type: str, structure: str, name: str, ids: Tensor, ranks: int, micro: int, z: dict[str, Tensor]
) -> Tensor:
    """(U,) the score after one step of `ranks` ranks, whose loss is the mean over micro-batches of `micro` rows; of
    learned gates what they see, (2, U)."""
    own = [small.model(model_type).train(False) for _ in range(ranks)]
    gate, scale = method(name), 8.0  # of the loss, as fp16 has it

    def work(world: Comm) -> Tensor:
        model = own[world.rank]
        forward = GatedForward(small.sites(families.anatomy(model), structure), model, gate.needs)
        forward.set(torch.cat(list(z.values())), None, CPU)
        batches = ids.chunk(ranks)[world.rank].split(micro)
        for batch in batches:
            (scale * losses(model, batch).mean() / len(batches)).backward()
        evidence = forward.evidence(world, scale)
        assert evidence is not None
        return evidence if name == "l0" else gate.update(torch.zeros_like(evidence), evidence)

    scores, _ = run_ranks(ranks, work)
    for one, other in pairwise(scores):
        assert torch.equal(one, other)
    return scores[0]


@pytest.mark.parametrize(
    ("model_type", "structure"), thinned([(family, s) for family in families.families() for s in STRUCTURES], 7)
)
def test_evidence_is_of_every_example(model_type: str, structure: str) -> None:
    """The mean square, the mean size and the mean of the examples' own gradients, however they are spread over
    micro-batches and ranks, where all gates of a site are 1 and where not. Would catch: the square or the size of a
    mean, in which examples cancel; a wrong scale."""
    model, ids = small.model(model_type), small.tokens(ROWS, LENGTH)
    sites = small.sites(families.anatomy(model), structure)
    z = {site.name: torch.ones(site.num_units) for site in sites}
    z[sites[1].name] = 0.5 + torch.rand(sites[1].num_units, generator=torch.Generator().manual_seed(5)) / 2
    each = example_gradients(model, sites, ids, z)
    assert each.std(0).sum() / each.abs().mean(0).sum() > 0.1, "examples have to differ"
    expected = {"fisher": each.square().mean(0), "taylor": each.abs().mean(0)}
    expected |= {"movement": -each.mean(0), "l0": torch.stack([each.mean(0), expected["taylor"]])}
    for name, wanted in expected.items():
        for ranks, micro in ((1, 4), (2, 1)):
            found = on_ranks(model_type, structure, name, ids, ranks, micro, z)
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["fisher", "taylor", "l0", "movement", "activation"])
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


# -- statistics of tokens ----------------------------------------------------------------------------------------------

LENGTHS = (7, 2, 3, 1)  # of the rows; on two ranks 9 and 4 tokens
BY_TOKENS = [("activation", structure) for structure in STRUCTURES] + [
    (name, "layers") for name in ("similarity", "pair_similarity")
]


def training(model_type: str) -> Any:
    """A model that trains, without dropout."""
    model = small.model(model_type).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if hasattr(model.config, "attention_dropout"):
        model.config.attention_dropout = 0.0
    return model


def token_by_token(model: Any, sites: list[Any], rows: list[Tensor], name: str) -> Tensor:
    """(U,) the mean over all tokens of rows that go through the model alone, so without any padding."""
    seen: dict[str, Any] = {}

    def see(site: Any) -> Any:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            seen[site.name] = before[0], (output[0] if isinstance(output, tuple) else output)[0]

        return model.get_submodule(site.consumer).register_forward_hook(hook, with_kwargs=True)

    handles = [see(site) for site in sites]
    total, count = torch.zeros(sum(site.num_units for site in sites), dtype=torch.float64), 0
    for row in rows:
        with torch.no_grad():
            model(row[None])
        for t in range(len(row)):
            values = []
            for site, following in zip(sites, [*sites[1:], None], strict=True):
                before, after = (each[t].double() for each in seen[site.name])
                if name == "pair_similarity" and following is not None:
                    after = seen[following.name][1][t].double()
                if "similarity" in name:
                    values.append(1 - (before @ after / before.norm() / after.norm()).view(1))
                elif site.features:
                    values.append(torch.stack([part.norm() ** 2 for part in before.split(site.features)]))
                else:
                    values.append(((after if site.sublayer is not None else after - before).norm() ** 2).view(1))
            total, count = total + torch.cat(values), count + 1
    for handle in handles:
        handle.remove()
    mean = total / count
    return (
        mean
        if name != "pair_similarity"
        else torch.stack([mean[:-1][max(i - 1, 0) : i + 1].mean() for i in range(len(mean))])
    )


def padded(rows: list[Tensor], left: bool = False) -> tuple[Tensor, Tensor]:
    """(ids, mask), (B, T)."""
    width = max(map(len, rows)) + 2
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(len(row))
        ids[i, part], mask[i, part] = row, 1
    return ids, mask


def rows_of(lengths: tuple[int, ...]) -> list[Tensor]:
    """Token ids."""
    return [row[:n] for row, n in zip(small.tokens(len(lengths), max(lengths)), lengths, strict=True)]


@pytest.mark.parametrize(
    ("model_type", "name", "structure"),
    thinned([(family, *pair) for family in families.families() for pair in BY_TOKENS], 5),
)
def test_padding_has_no_share_in_statistics(model_type: str, name: str, structure: str) -> None:
    """Means over real tokens, on one rank and on two of which one has more padding. Would catch: padding that counts,
    a mean of the ranks' or of the micro-batches' means, a family whose base model sees no mask."""
    model, rows = training(model_type), rows_of(LENGTHS)
    sites = small.sites(families.anatomy(model), structure)
    expected = token_by_token(model, sites, rows, name).float()
    for ranks in (1, 2):
        own = [training(model_type) for _ in range(ranks)]

        def work(world: Comm, own: Any = own, ranks: int = ranks) -> Any:
            model = own[world.rank]
            forward = GatedForward(small.sites(families.anatomy(model), structure), model, method(name).needs)
            mine = len(rows) // ranks
            for first in range(world.rank * mine, (world.rank + 1) * mine, 2):  # micro-batches of two
                ids, mask = padded(rows[first : first + 2])
                model(input_ids=ids, attention_mask=mask)
            return forward.evidence(world, 1.0)

        for found in run_ranks(ranks, work)[0]:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_every_way_to_give_a_mask() -> None:
    """By position, of bools, on the left, to the base model alone as some trainers do; none; after an evaluation."""
    model, rows = training("llama"), rows_of(LENGTHS)
    sites = small.sites(families.anatomy(model), "ffn")
    expected = token_by_token(model, sites, rows, "activation").float()
    forward = GatedForward(sites, model, "activations")
    ids, mask = padded(rows)
    ways = [
        lambda: model(ids, mask),
        lambda: model(ids, attention_mask=mask.bool()),
        lambda: model(**dict(zip(("input_ids", "attention_mask"), padded(rows, left=True), strict=True))),
        lambda: model.model(input_ids=ids, attention_mask=mask),
        lambda: [model(row[None]) for row in rows],
        lambda: (model.eval()(ids), model.train()(ids, mask), model.eval()(ids[:1]), model.train()),
    ]
    for way in ways:
        way()
        found = forward.evidence(Comm(), 1.0)
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match=r"of shape \(4, 1, 9, 9\), which does not say which tokens are padding"):
        model(ids, torch.ones(4, 1, 9, 9).bool())


def test_padding_of_packed_documents() -> None:
    """The model gets no mask, and the statistics know the padding nevertheless. Would catch: padding that counts."""
    model, rows = training("llama"), rows_of((5, 3, 2))
    samples = {
        "input_ids": [[*rows[0].tolist(), *rows[1].tolist()], rows[2].tolist()],
        "lengths": [[5, 3], [2]],
    }
    samples["supervised"] = [[True] * len(ids) for ids in samples["input_ids"]]
    task = Chat(packing="best_fit")
    batch = task.collate(samples, SimpleNamespace(pad_token_id=0, model_max_length=64))  # type: ignore[arg-type]
    assert batch["attention_mask"].sum() < batch["attention_mask"].numel()
    for name, structure in (("activation", "kv_groups"), ("similarity", "layers"), ("pair_similarity", "layers")):
        sites = small.sites(families.anatomy(model), structure)
        forward = GatedForward(sites, model, method(name).needs)
        task.outputs(model, batch)
        found = forward.evidence(Comm(), 1.0)
        forward.remove()
        assert found is not None
        torch.testing.assert_close(found, token_by_token(model, sites, rows, name).float(), rtol=1e-3, atol=1e-5)
