"""What a cut takes, by every allocation of torch, against what `pat plan` announces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from pat.planning.calibration import calibration
from pat.pruning import registry, scopes
from pat.pruning.calibration.statistics import Gram, InputStatistic
from pat.pruning.criteria.alps import Alps
from pat.pruning.weights.whole import chooser
from pat.schema import Config, PrunerConfig
from tests import one_rank
from tests.allocations import peak

TOKENS = 24
MASKS = 5  # bytes of a weight that a pruner holds anyway: its dense value and its flag


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


@pytest.mark.parametrize("scope", ["row", "matrix"])
@pytest.mark.parametrize("outputs, inputs", [(128, 512), (640, 256)])
def test_a_cut_of_alps_holds_what_it_announces(outputs: int, inputs: int, scope: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, x = (torch.randn(n, inputs, generator=generator) for n in (outputs, 2 * inputs))
    statistics: dict[type[InputStatistic], Tensor] = {Gram: x.T @ x / len(x)}
    method = Alps(iterations=4, refinements=2)
    choose = chooser("matrix", registry.build("granularity", "weight"), 0.5, scopes.build(scope))
    measured = peak(lambda: method.cut(weights, method.prepare(statistics), choose), tmp_path)
    given = 4 * weights.numel()  # counted as the method's own: it may use them
    assert 0.9 < (measured + given) / method.cut_bytes(outputs, inputs) <= 1.01


def batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 64, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


@pytest.mark.parametrize(
    "fields",
    [
        {"params": ["*.down_proj.weight"], "granularity": "weight", "scope": "matrix", "criterion": {"name": "alps"}},
        {
            "params": ["*.down_proj.weight", "*.gate_proj.weight"], "granularity": "weight", "scope": "row",
            "criterion": {"name": "alps", "reconstruct": 1},
        },
        {"params": ["model.layers.*_proj.weight"], "granularity": "weight", "scope": "row", "criterion": "wanda"},
        {
            "params": ["*.experts.*_proj"], "granularity": "weight", "scope": "matrix",
            "criterion": {"name": "alps", "reconstruct": 1},
        },
        {"structures": ["ffn"], "gate": "obs", "budget": {"name": "shape", "keep": {"ffn": 256}}},
        {
            "structures": ["ffn"], "gate": {"name": "obs", "reconstruct": 1},
            "budget": {"name": "shape", "keep": {"ffn": 256}},
        },
        {"params": ["model.layers.*_proj.weight"], "granularity": "weight", "scope": "row", "criterion": "wanda",
         "vocabulary": 20_000},
    ],
    ids=["alps", "alps, reconstructed", "wanda", "experts", "obs", "obs, reconstructed", "embeddings"],
)  # fmt: skip
def test_a_whole_cut_holds_what_the_plan_says(fields: dict[str, Any], tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 4}
    fields = dict(fields)
    sizes |= {"vocab_size": fields.pop("vocabulary", 64), "num_key_value_heads": 4, "num_hidden_layers": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    if "*.experts.*_proj" in fields.get("params", ()):
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=3, num_experts_per_tok=2))
    at = int("structures" in fields)  # gates are cut when a step begins, of which `build` begins the first
    common: dict[str, Any] = {
        "budget": {"name": "sparsity", "sparsity": 0.5},
        "schedule": {"name": "one_shot", "start": at},
    }
    config = Config().changed(
        task={"name": "causal_lm"},
        train__num_steps=2, data__max_length=TOKENS, engine__zero_stage=0, engine__dtype="fp32",
        engine__kernels="eager", optim__lr=1e-3, optim__implementation="loop",
        pruners__one=PrunerConfig(**(common | fields)),
    )  # fmt: skip
    _, pruner = one_rank.build(config, model)
    one_rank.surround(pruner, samples=lambda number: batches(), warn=lambda title, text: None)
    (needs,) = pruner.calibrations
    needed = calibration(config, model, [replace(needs, num_samples=len(batches()))], 1)
    in_all = needed.device + needed.host  # on a CPU these are one memory
    masks = MASKS * sum(each.numel for each in pruner.weight_pruners)
    measured = peak((lambda: pruner.begin(at)) if at else pruner.prune, tmp_path) - masks
    assert 0.75 < measured / in_all <= 1.02
