"""Which layers go by pairs: two that undo each other, each of which changes more than any other one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pat.common.comm import Comm
from pat.models import families
from pat.pruning import registry
from pat.pruning.structures.hooks import GatedForward
from tests import models as small

SIZES = (0.8, 0.8, 1.0, -1.0, 0.8, 0.8)  # of what each layer adds, in a direction of its own but for the two


@pytest.mark.parametrize(("name", "goes"), [("pair_similarity", {2, 3}), ("similarity", {0, 1, 4, 5})])
def test_layers_that_undo_each_other(name: str, goes: set[int]) -> None:
    model = small.model("llama", num_hidden_layers=len(SIZES)).train()
    directions = torch.linalg.qr(torch.randn(model.config.hidden_size, 6, generator=torch.Generator().manual_seed(0)))[
        0
    ]

    def adds(layer: int) -> Any:
        step = SIZES[layer] * directions[:, 2 if layer == 3 else layer]
        return lambda module, args, output: output + step

    for i, layer in enumerate(model.model.layers):
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        layer.register_forward_hook(adds(i))
    forward = GatedForward(small.sites(families.anatomy(model), "layers"), model, registry.build("gate", name).needs)
    model(small.tokens(4, 16))
    found = forward.evidence(Comm(), 1.0)
    assert found is not None and set(found.argsort()[:2].tolist()) <= goes
