"""Gates: the methods against their definitions, the hooks against finite differences and against folded weights."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pat.common.comm import LOCAL
from pat.models import families
from pat.pruning import registry
from pat.pruning.gates import Ranked
from pat.pruning.structures import parts
from pat.pruning.structures.hooks import GatedForward, SiteHooks, install
from pat.zero.layouts import Segment, Shard
from tests import models as small
from tests.gate_oracle import DECAYS
from tests.sets import thinned
from tests.thread_ranks import run_ranks

METHODS = {name: registry.build("gate", name) for name in registry.names("gate")}
RANKED = [name for name, method in METHODS.items() if isinstance(method, Ranked)]
STRUCTURES = [(name,) for name in registry.names("structure") if name != "heads"]  # as Llama shares KV heads


# -- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANKED)
def test_ranked_gates_are_pure_and_keep_what_matters(name: str) -> None:
    """A unit whose evidence says that it matters ends above one whose evidence says that it does not."""
    method = METHODS[name]
    matters = {"movement": -1.0}.get(name, 1.0)  # a gate that the loss wants more open: dL/dz < 0
    score, evidence = torch.zeros(2), torch.tensor([matters, 0.1 * matters])
    for _ in range(5):
        before = score.clone()
        updated = method.update(score, evidence)
        assert torch.equal(score, before)
        score = updated
    assert score[0] > score[1]


def test_defaults_are_those_of_the_naive_implementation() -> None:
    """The decay of every average. Mean squares mean something else in every structure, changes of the loss do not."""
    assert {n: m.decay for n, m in METHODS.items() if hasattr(m, "decay") and n in DECAYS} == DECAYS  # type: ignore[attr-defined]
    assert {n for n, m in METHODS.items() if not m.comparable} == {"activation", "magnitude", "obs"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "movement", "fade": 0}, "gate.fade is 0, but must be at least 1"),
        ({"name": "taylor", "decay": 1.0}, "gate.decay is 1.0, but must be at least 0 and below 1"),
        ({"name": "l0", "lr": 0.0}, "gate.lr is 0.0, but must be above 0"),
        ({"name": "smooth", "temperature": 2.0}, "gate.temperature is 2.0"),
        ({"name": "l0", "spread": -1.0}, "gate.spread is -1.0"),
    ],
)
def test_refusals(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        registry.build("gate", given)


# -- hooks -------------------------------------------------------------------------------------------------------------


def gated(model: Any, structures: tuple[str, ...], needs: Any = "gradient") -> tuple[list[Any], list[SiteHooks]]:
    sites = small.sites(families.anatomy(model), *structures)
    return sites, install(sites, model, needs)


def loss(model: Any, ids: Tensor) -> Tensor:
    logits = model(ids).logits.double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


@pytest.mark.parametrize(
    ("model_type", "structures"), thinned([(family, s) for family in families.families() for s in STRUCTURES], 3)
)
def test_the_gradient_of_a_gate_is_the_change_of_the_loss(model_type: str, structures: tuple[str, ...]) -> None:
    """dL/dz of every site, summed over two micro-batches, against central differences; and it is not 0. Would catch: a
    gate on wrong features, or one whose factor a norm divides away."""
    model = small.model(model_type).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if hasattr(model.config, "attention_dropout"):
        model.config.attention_dropout = 0.0
    _, hooks = gated(model, structures)
    batches = [small.tokens(2, 7), small.tokens(2, 7).flip(1)]
    generator = torch.Generator().manual_seed(1)
    for hook in hooks:
        hook.z = (0.5 + torch.rand(hook.site.num_units, generator=generator)).double().requires_grad_()
    for ids in batches:
        loss(model, ids).backward()
    step = 2e-3  # Llama normalises in fp32 whatever the dtype
    for hook in hooks:
        z = hook.z
        assert z is not None and z.grad is not None
        assert z.grad.abs().max() > 3e-4, f"the gates of {hook.site.name} do not reach the loss"
        for unit in {0, int(z.grad.abs().argmax())}:
            values = []
            for sign in (+1, -1):
                hook.z = z.detach().clone()
                hook.z[unit] += sign * step
                with torch.no_grad():
                    values.append(sum(float(loss(model, ids)) for ids in batches))
            hook.z = z
            expected = (values[0] - values[1]) / (2 * step)
            assert float(z.grad[unit]) == pytest.approx(expected, rel=1e-2, abs=1e-4), (hook.site.name, unit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("structures", STRUCTURES)
@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2"])
def test_gates_that_are_all_1_give_the_bits_of_none(
    model_type: str, structures: tuple[str, ...], dtype: torch.dtype
) -> None:
    """The short way past them: the loss and the gradients of weights; those of gates as multiplying gives them, whose
    bits differ only where before + (after - before) of a whole layer rounds. Not taken once one gate is not 1."""
    model = small.model(model_type).to(dtype)
    forward = GatedForward(small.sites(families.anatomy(model), *structures), model, "gradient")
    ones, of_weights, of_gates = torch.ones(sum(forward.sizes)), [], []
    for z, short in ((None, False), (ones, True), (ones, False)):
        forward.set(z, None, torch.device("cpu"))
        assert all(hook.open for hook in forward.hooks) is (z is not None)
        for hook in forward.hooks:
            hook.open = short
        model.zero_grad()
        value = loss(model, small.tokens(2, 7))
        value.backward()
        of_gates.append([hook.z.grad for hook in forward.hooks if hook.z is not None])
        of_weights.append([value, *(p.grad for p in model.parameters())])
    rounds = structures == ("layers",)
    forward.set(torch.full_like(ones, 0.5), ones, torch.device("cpu"))
    model.eval()
    with torch.no_grad():
        assert torch.equal(loss(model, small.tokens(2, 7)), of_weights[0][0]), "all open in evaluation alone"
        if rounds:
            hook, large = forward.hooks[0], torch.tensor([[[-3e38]]])
            assert torch.equal(hook._block(nn.Module().eval(), (large,), {}, -large), -large), "the change overflows"
    model.train()
    tolerance = rounds * (1e-3 if dtype == torch.float32 else 0.02)
    for others in of_weights[1 : 2 if rounds else 3]:
        for mine, theirs in zip(of_weights[0], others, strict=True):
            assert mine is theirs is None or torch.equal(mine, theirs)
    for mine, theirs in zip(*of_gates[1:], strict=True):
        assert bool(mine.any())
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    ones[0] = 0.5
    forward.set(ones, None, torch.device("cpu"))
    assert [hook.open for hook in forward.hooks] == [False] + [True] * (len(forward.hooks) - 1)
    forward.set(torch.ones_like(ones), None, torch.device("cpu"))
    forward.settle(ones, torch.device("cpu"))
    assert not forward.hooks[0].open, "final gates multiply"


@pytest.mark.parametrize(
    ("model_type", "structures"),
    thinned([(family, s) for family in families.families() for s in STRUCTURES if s != ("layers",)], 3),
)
def test_folded_weights_are_gated_ones(model_type: str, structures: tuple[str, ...]) -> None:
    """What `factors` multiplies, on flat pieces as shards hold them, does what the hooks did; dead units too."""
    model = small.model(model_type)
    sites, hooks = gated(model, structures, None)
    keep = small.random_keep(sites, seed=3, uniform=False)
    z = {name: value.float() for name, value in small.random_gates(sites, keep, seed=4).items()}
    ids = small.tokens()
    for hook in hooks:
        hook.z = z[hook.site.name]
    with torch.no_grad():
        expected = model(ids).logits
    for hook in hooks:
        hook.remove()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    alive = {name: flags.float() for name, flags in keep.items()}
    for by in (
        parts.factors(sites, z, shapes, gated=True),
        parts.factors(sites, alive, shapes, gated=False),
    ):
        for name, found in by.items():
            flat = model.get_parameter(name).data.view(-1)
            middle = min(37, flat.numel() // 2)  # a shard boundary in the middle of a row
            for start, stop in ((0, middle), (middle, flat.numel())):
                segment = Segment(name, shapes[name], start, stop - start, 0, 0)
                for factor in found:
                    part = flat[start:stop]
                    part.copy_(factor.apply(part, factor.along(segment, 0, stop - start)))
    with torch.no_grad():
        assert (model(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def cut_flat(model: Any, ranks: int) -> list[Any]:
    """The model's parameters in one flat vector, cut into equal parts wherever that falls, as ZeRO 1 and 2 do."""
    whole = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    width = -(-whole.numel() // ranks)
    found, at, segments = [], 0, []
    for name, p in model.named_parameters():
        for rank in range(ranks):
            low, high = max(at, rank * width), min(at + p.numel(), (rank + 1) * width)
            if low < high:
                segments.append((rank, Segment(name, tuple(p.shape), low - at, high - low, 0, low - rank * width)))
        at += p.numel()
    for rank in range(ranks):
        flat = whole[rank * width : (rank + 1) * width].clone()
        own = tuple(segment for owner, segment in segments if owner == rank)
        found.append(SimpleNamespace(comm=LOCAL, shards=[Shard(0, 0, flat, own)]))
    return found


@pytest.mark.parametrize("structure", ["attention_layers", "mlp_layers"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
def test_folding_into_cut_shards(model_type: str, structure: str) -> None:
    """What hardening does to the shards of three ranks is what the hooks did; gates of 1 leave every bit. Would catch:
    a norm that multiplies by 1 + weight, and whose weight is multiplied."""
    model = small.model(model_type)
    sites, hooks = gated(model, (structure,), None)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    z = {site.name: torch.tensor([value]) for site, value in zip(sites, (0.3, 1.0, 0.8), strict=True)}
    for hook in hooks:
        hook.z = z[hook.site.name]
    with torch.no_grad():
        expected = model(small.tokens()).logits
    for hook in hooks:
        hook.remove()
    before = torch.nn.utils.parameters_to_vector(model.parameters())
    flats = []
    for layout in cut_flat(model, 3):
        parts.multiply(layout, parts.factors(sites, z, shapes, gated=True))
        flats.append(layout.shards[0].view)
    after = torch.cat(flats)
    gated_weights = sum(math.prod(shapes[part.parameter]) for site in (sites[0], sites[2]) for part in site.gated)
    assert 0 < (after != before).sum() <= gated_weights
    torch.nn.utils.vector_to_parameters(after, model.parameters())
    with torch.no_grad():
        assert (model(small.tokens()).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_mean_square_and_zeros_over_cut_shards(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per unit against its parts taken one by one; three ranks know the whole, whatever a boundary cuts."""
    monkeypatch.setattr(parts, "CHUNK", 1000)
    model = small.model(model_type)
    sites = small.sites(families.anatomy(model), "ffn", "kv_groups")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    keep = small.random_keep(sites, seed=5, uniform=False)
    dead = parts.factors(sites, {name: flags.float() for name, flags in keep.items()}, shapes, gated=False)
    expected, gone = [], {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for site in sites:
        for unit in range(site.num_units):
            places = [(s.parameter, s.dim, s.start + unit * s.per_unit, s.per_unit) for s in site.parts]
            owned = [model.get_parameter(name).detach().narrow(*place).flatten() for name, *place in places]
            expected.append(torch.cat(owned).double().square().mean())
            for name, *place in places if not keep[site.name][unit] else ():
                gone[name].narrow(*place).fill_(True)
    alive = sum(int(model.get_parameter(name)[flags].count_nonzero()) for name, flags in gone.items())

    def work(comm: Any) -> tuple[Tensor, list[int]]:
        layout: Any = SimpleNamespace(comm=comm, shards=cut_flat(model, 3)[comm.rank].shards)
        square, before = parts.mean_square(layout, sites, shapes), parts.count_nonzero(layout, dead)
        parts.multiply(layout, dead)
        return square, [before, parts.count_nonzero(layout, dead)]

    for square, counts in run_ranks(3, work)[0]:
        torch.testing.assert_close(square.double(), torch.stack(expected), rtol=1e-5, atol=0)
        assert counts == [alive, 0] and alive > 0


@pytest.mark.parametrize("model_type", ["llama", "bert"])
@pytest.mark.parametrize("structure", ["ffn", "kv_groups", "layers"])
def test_scores_against_removing_each_unit(model_type: str, structure: str) -> None:
    """How much the losses of the examples change when a gate closes a little, unit by unit, is what Taylor says of it;
    and of all that are removed whole, those with a score in the upper half cost more than those in the lower."""
    model = small.model(model_type)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)  # a loss that is smooth enough for a first order
    method = registry.build("gate", {"name": "taylor", "decay": 0.0})
    forward = GatedForward(small.sites(families.anatomy(model), structure), model, method.needs)
    ids = torch.cat([small.tokens(4, 9), small.tokens(4, 9).flip(0, 1)])

    def each() -> Tensor:  # of all rows at once: none is padded
        with torch.no_grad():
            logits = model(ids).logits.double()
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(1)

    forward.set(torch.ones(sum(forward.sizes)), None, torch.device("cpu"))
    loss(model, ids).backward()
    evidence = forward.evidence(LOCAL, 1.0)
    assert evidence is not None
    scores, before = method.update(torch.zeros_like(evidence), evidence).split(forward.sizes), each()
    little, whole = [], []
    for hook, own in zip(forward.hooks, scores, strict=True):
        for unit in range(0, hook.site.num_units, max(1, hook.site.num_units // 16)):
            changes = []
            for closed in (0.05, 1.0):
                hook.z, hook.open = torch.ones(hook.site.num_units), False
                hook.z[unit] -= closed
                changes.append(float((each() - before).abs().mean()))
            hook.z = None
            little.append((float(own[unit]), changes[0] / 0.05))
            whole.append((float(own[unit]), changes[1]))
    found, expected = torch.tensor(little).T
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.98
    whole.sort()
    half = len(whole) // 2
    assert sum(change for _, change in whole[:half]) < sum(change for _, change in whole[-half:])


def test_an_evaluation_has_gates_of_its_own() -> None:
    """What multiplies in training is a sample. Would catch: an evaluation of a sample."""
    model, ids = small.model("llama"), small.tokens()
    forward = GatedForward(small.sites(families.anatomy(model), "ffn"), model, None)
    sample = (torch.rand(sum(forward.sizes), generator=torch.Generator().manual_seed(1)) > 0.5).float()
    found = {}
    with torch.no_grad():
        for name, z, evaluated in (
            ("both", sample, 0.5 * sample),
            ("sample", sample, None),
            ("mean", 0.5 * sample, None),
        ):
            forward.set(z, evaluated, torch.device("cpu"))
            found[name] = [model.train(mode)(ids).logits for mode in (True, False)]
    assert torch.equal(found["both"][0], found["sample"][0]) and torch.equal(found["both"][1], found["mean"][1])
    assert not torch.equal(*found["both"])


def test_a_unit_that_is_let_through_although_its_flag_is_down_is_found() -> None:
    """And only that: a kept unit may be closed."""
    model = small.model("llama")
    forward = GatedForward(small.sites(families.anatomy(model), "ffn"), model, None)
    keep = torch.ones(sum(forward.sizes), dtype=torch.bool)
    down = forward.sizes[0] + 3  # in the second layer
    keep[down] = False
    for closed, expected in (
        ([], forward.hooks[1].site.name),
        ([down], None),
        ([down, 0], None),
        ([0], forward.hooks[1].site.name),
    ):
        z = torch.ones(len(keep))
        z[closed] = 0.0
        forward.set(z, None, torch.device("cpu"))
        assert forward.opened(keep) == expected
