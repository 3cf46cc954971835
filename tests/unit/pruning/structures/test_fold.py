"""Folding gates into weights moves Adam's moments with them: the steps that follow are those of Adam on what was folded
from the start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.common.comm import LOCAL
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import PrunerConfig
from pat.zero.layouts import Segment, Shard
from tests import models as small

BEFORE, AFTER, LR = 40, 15, 1e-3


def made(structure: str, gate: Any) -> tuple[Any, StructurePruner, torch.optim.AdamW]:
    """A model, its gates, and an optimizer whose shards are the parameters, as at ZeRO 0 in fp32."""
    model = small.model("llama", num_hidden_layers=2)
    settings: dict[str, Any] = {
        "structures": [structure],
        "gate": gate,
        "budget": {"name": "shape", "keep": {structure: {"ffn": 64, "layers": 1, "mlp_layers": 1}[structure]}}
        | ({"hf_compatible": False} if structure == "mlp_layers" else {}),
        "schedule": {"name": "cubic", "start": 0, "end": BEFORE},
    }
    pruner = StructurePruner("narrow", PrunerConfig(**settings), model, num_steps=BEFORE + AFTER, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.0, foreach=False)
    pruner.bind(layout_of(model, optimizer))
    generator = torch.Generator().manual_seed(1)
    pruner.state.score = torch.rand(pruner.state.score.shape, generator=generator)
    return model, pruner, optimizer


def layout_of(model: Any, optimizer: torch.optim.AdamW) -> Any:
    """Whose shards are the parameters."""
    shards = [
        Shard(i, 0, p, (Segment(name, tuple(p.shape), 0, p.numel(), i, 0),))
        for i, (name, p) in enumerate(model.named_parameters())
    ]
    return SimpleNamespace(
        comm=LOCAL,
        world=LOCAL,
        shards=shards,
        base=optimizer,
        device=torch.device("cpu"),
        betas=(0.9, 0.999),
        refresh_forward=lambda: None,
    )


def along(pruner: StructurePruner, z: Tensor, name: str) -> Tensor:
    """What the gates multiply a parameter's gradient by, of its shape or broadcast to it."""
    for site, values in zip(pruner.sites, z.split(pruner.units.sizes), strict=True):
        for part in site.parts if site.sublayer is None else site.gated:
            if part.parameter == name:
                shape = [1, 1]
                shape[part.dim] = -1
                wide = values.repeat_interleave(part.per_unit) if part.per_unit else values
                return wide.view(shape[: 1 if part.dim == 0 and "norm" in name else 2])
    return torch.ones(())


@pytest.mark.parametrize("structure", ["ffn", "mlp_layers", "layers"])
@pytest.mark.parametrize("kind", ["z is constant", "z is sampled"])
def test_steps_after_the_fold_are_adams_on_the_folded_weights(structure: str, kind: str) -> None:
    """A loss that is linear in the effective weights, whose gradient G is given: dL/dw = z G before, G after.

    With a constant z any G is exact; with another z each step a constant G is.
    """
    model, pruner, optimizer = made(structure, {"name": "l0", "initial": 1.0})
    oracle = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    adam = torch.optim.AdamW(oracle.values(), LR, weight_decay=0.0, foreach=False)
    generator = torch.Generator().manual_seed(2)
    fixed = {name: torch.randn(p.shape, generator=generator) for name, p in oracle.items()}
    z0 = 0.05 + 0.4 * torch.rand(pruner.state.z.shape, generator=generator)

    def sampled(t: int) -> Tensor:
        noise = torch.rand(z0.shape, generator=torch.Generator().manual_seed(t))
        return z0 if kind == "z is constant" else z0 * 2 * noise

    pruner.training.gates = lambda state, now: (sampled(now.t), sampled(now.t))  # type: ignore[method-assign]
    pruner.training.final = lambda state: z0  # type: ignore[method-assign]
    pruner.begin(0)
    ratios: list[float] = []
    alive: dict[str, Tensor] = {}
    for t in range(BEFORE + AFTER):
        z = sampled(t) if t < BEFORE else torch.ones_like(z0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        expected = {name: p.detach().clone() for name, p in oracle.items()}
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            grad = noise if kind == "z is constant" else fixed[name]
            oracle[name].grad, p.grad = grad, along(pruner, z, name) * grad
        adam.step()
        optimizer.step()
        if t >= BEFORE:
            for name, p in model.named_parameters():
                mine, theirs = p.detach() - before[name], oracle[name].detach() - expected[name]
                moved = alive[name] & (theirs.abs() > LR / 20)
                ratios += (mine[moved] / theirs[moved]).tolist()
        pruner.learn(t, skipped=False)
        pruner.begin(t + 1)
        if t + 1 == BEFORE:
            alive = {name: p.detach() != 0 for name, p in model.named_parameters()}
    assert pruner.state.folded and len(ratios) > 10_000
    found = torch.tensor(ratios)
    assert float((found - 1).abs().max()) < 2e-2, f"updates are {found.min():.2f} to {found.max():.2f} of the oracle's"


def test_what_is_gone_is_reset_and_a_gate_that_was_always_1_changes_no_bit() -> None:
    model, pruner, optimizer = made("ffn", {"name": "taylor", "fade": 1})
    generator = torch.Generator().manual_seed(2)
    moments: dict[str, Tensor] = {}
    pruner.begin(0)
    for t in range(BEFORE):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        if t + 1 == BEFORE:
            moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
        pruner.learn(t, skipped=False)
        pruner.begin(t + 1)
    assert pruner.state.hardened
    for site, flags in zip(pruner.sites, pruner.state.keep.split(pruner.units.sizes), strict=True):
        (part,) = site.gated
        now = optimizer.state[model.get_parameter(part.parameter)]["exp_avg"]
        assert not now[:, ~flags].any()
        assert torch.equal(now[:, flags], moments[part.parameter][:, flags])


@pytest.mark.parametrize("structure", ["attention_layers", "mlp_layers"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_removed_sublayer_with_a_bias_stays_removed(family: str, structure: str) -> None:
    """By real gradients: that of the bias of its output is only 0 while the hook multiplies by 0."""
    model = small.model(family).train()
    settings: dict[str, Any] = {
        "structures": [structure],
        "gate": {"name": "taylor", "fade": 1},
        "budget": {"name": "shape", "keep": {structure: 2}, "hf_compatible": False},
        "schedule": {"name": "one_shot", "start": 1, "hard_from": 2},
    }
    pruner = StructurePruner("short", PrunerConfig(**settings), model, num_steps=6, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.0, foreach=False)
    pruner.bind(layout_of(model, optimizer))
    ids = small.tokens(2, 8)
    torch.manual_seed(0)
    pruner.begin(0)
    for t in range(4):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        pruner.gather(1.0)
        optimizer.step()
        optimizer.zero_grad()
        pruner.learn(t, skipped=False)
        pruner.begin(t + 1)
    assert pruner.state.folded
    pruner.check()
    (gone,) = [site for site in pruner.sites if not pruner.keep_flags()[site.name].any()]
    assert len(gone.gated) == 2, "a weight and its bias"
    assert not any(model.get_parameter(part.parameter).any() for part in gone.gated)
