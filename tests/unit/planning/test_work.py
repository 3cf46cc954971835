"""Floating-point operations that `pat plan` announces, against published formulas and against those of real cuts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from pat.models import operations
from pat.planning import activations, work
from pat.pruning.calibration.needs import Needs, nothing
from pat.pruning.calibration.statistics import Gram
from pat.pruning.criteria import alps
from pat.pruning.criteria.alps import Alps
from pat.schema import Config, PrunerConfig
from pat.tasks import base
from tests import one_rank

LAYERS, HIDDEN, NEURONS, WORDS = 2, 64, 160, 300
LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": NEURONS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LENGTH, SAMPLES = 24, 6
MLP = 3 * HIDDEN * NEURONS  # weights of a layer
LINEAR = MLP + 3 * HIDDEN**2  # q, o, and k and v of half of the heads


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def hf_config(attention: str = "eager") -> LlamaConfig:
    made = LlamaConfig(**LLAMA, num_hidden_layers=LAYERS, vocab_size=WORDS, tie_word_embeddings=True)
    made._attn_implementation = attention
    return made


def measured(
    attention: str = "eager", chunk: int | None = None, samples: int = SAMPLES, **keys: Any
) -> activations.Activations:
    config = Config().changed(data__max_length=LENGTH, model__attn_implementation=attention, **keys)
    task = base.build({"name": "causal_lm", "loss_chunk_tokens": chunk})
    return activations.activations(config, task, hf_config(attention), samples)


@pytest.mark.parametrize("chunk", [None, 8])
@pytest.mark.parametrize("attention, backward", [("eager", 2.0), ("sdpa", 2.5)])
def test_a_training_step_computes_what_the_published_formula_says(
    attention: str, backward: float, chunk: int | None
) -> None:
    """6 N + 12 L H Q T operations a token, Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B; fused attention
    computes its scores again. Would catch: the backward, the head or the layers counted twice or not at all."""
    tokens = LENGTH * SAMPLES
    scores = 4 * LAYERS * HIDDEN * LENGTH * tokens
    found = measured(attention, chunk)
    assert found.layers == 2 * LAYERS * LINEAR * tokens + scores
    assert found.training == 6 * (LAYERS * LINEAR + WORDS * HIDDEN) * tokens + (1 + backward) * scores
    kept = Config().changed(engine__activation_checkpointing=False)
    again = Config().changed(engine__activation_checkpointing=True)
    assert work.step(kept, 3, found) == 3 * found.training
    assert work.step(again, 3, found) == 3 * (found.training + found.layers)


def test_frozen_weights_have_no_gradient_to_compute() -> None:
    """Would catch: adapters planned as if every weight had a gradient."""
    whole, head_only = measured(), measured(optim__trainable=["model.embed_tokens.weight"])
    assert head_only.layers == whole.layers
    assert head_only.training == whole.training - LAYERS * 2 * LINEAR * LENGTH * SAMPLES


@pytest.mark.skipif(not operations.EXPERTS, reason="transformers below 5.23")
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_token_is_counted_in_the_experts_that_it_takes(dtype: str) -> None:
    """Would catch: experts that count for nothing, and a plan that only bf16 has."""
    experts, width = 2, 96
    sizes: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": experts, "moe_intermediate_size": width}
    sizes |= LLAMA | {"head_dim": 16, "num_hidden_layers": LAYERS, "vocab_size": WORDS}
    made = Qwen3MoeConfig(**sizes)
    config = Config().changed(data__max_length=LENGTH, model__attn_implementation="eager", engine__dtype=dtype)
    found = activations.activations(config, base.build({"name": "causal_lm"}), made, 1)
    weights = 3 * HIDDEN**2 + HIDDEN * 8 + experts * 3 * HIDDEN * width
    scores = 4 * HIDDEN * LENGTH
    assert found.layers == LAYERS * (2 * weights + scores) * LENGTH
    assert found.training == 3 * found.layers + 6 * WORDS * HIDDEN * LENGTH


def batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(0, WORDS, (SAMPLES, 1, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": each, "attention_mask": torch.ones_like(each), "labels": each} for each in ids]


class Products(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, whose hooks on modules stand in the way of `torch.autograd.grad`."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation, as it is, and counted."""
        out = func(*args, **(kwargs or {}))
        if (known := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += known(*args, **(kwargs or {}), out_val=out)
        return out


WEIGHTS: dict[str, Any] = {
    "params": ["*.mlp.*.weight"],
    "granularity": "weight",
    "scope": "matrix",
    "budget": {"name": "sparsity", "sparsity": 0.5},
}
CASES: dict[str, dict[str, Any]] = {
    "alps": WEIGHTS | {"criterion": {"name": "alps"}},
    "alps, fitted": WEIGHTS | {"criterion": {"name": "alps", "reconstruct": 2}},
    "alps, gradients": WEIGHTS | {"scope": "global", "criterion": {"name": "alps", "gradient_samples": SAMPLES}},
    "wanda": WEIGHTS | {"criterion": {"name": "wanda"}},
    "obs": {"structures": ["ffn"], "gate": "obs", "budget": {"name": "shape", "keep": {"ffn": 1}}},
}


def test_of_each_expert_only_its_tokens_are_summed_up_and_its_inputs_are_its_own() -> None:
    """Would catch: a plan that lets all experts read one input, or every token pass each of them."""
    tokens, ranks = SAMPLES * LENGTH, 2
    shapes = {f"model.layers.0.mlp.experts.down_proj[{expert}]": (8, 16) for expert in range(4)}
    needs = Needs("k", SAMPLES, shapes, (Gram,), nothing, cut_flops=lambda o, i: 100.0 * o + i, routed=0.5)
    config = Config().changed(task={"name": "causal_lm"}, data__max_length=LENGTH)
    planned = work.cut(config, [needs], ranks, micro=1, measured=measured(samples=1))
    assert planned is not None
    assert planned.fp32 == 4 * Gram.flops(tokens // ranks // 2, 16) + 2 * 816.0, "two at once on two ranks"
    assert needs.too_few(31) is not None and needs.too_few(32) is None


@pytest.mark.parametrize("case", CASES)
def test_a_cut_computes_what_the_plan_says(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts products of matrices only, so what LAPACK does is taken off the plan, by hand."""
    monkeypatch.setattr(alps, "SETTLED", -1.0)  # every iteration is taken
    fields = CASES[case]
    at = int("structures" in fields)  # gates are cut when a step begins
    model: Any = AutoModelForCausalLM.from_config(hf_config(), attn_implementation="eager")
    config = Config().changed(
        task={"name": "causal_lm"}, train__num_steps=2, data__max_length=LENGTH,
        engine__zero_stage=0, engine__dtype="fp32", engine__kernels="eager",
        optim__lr=1e-3, optim__implementation="loop",
        pruners__one=PrunerConfig(**fields, schedule={"name": "one_shot", "start": at}),
    )  # fmt: skip
    _, pruner = one_rank.build(config, model)
    one_rank.surround(pruner, samples=lambda number: batches(), warn=lambda title, text: None)
    needs = [replace(each, num_samples=SAMPLES) for each in pruner.calibrations]
    planned = work.cut(config, needs, ranks=1, micro=1, measured=measured(samples=1))
    assert planned is not None
    lapack = 0.0
    if case.startswith("alps"):
        rhos = 1 + Alps().iterations // alps.PATIENCE
        lapack = LAYERS * rhos * (2 * HIDDEN**3 + NEURONS**3 / 3)  # gate and up have inverses, down has factors
        lapack += LAYERS * Alps().iterations * 2 * HIDDEN * NEURONS**2  # and two triangular solves
    if case == "obs":
        lapack = LAYERS * (NEURONS**3 + 2 * HIDDEN * NEURONS**2)
    with Products() as counted:
        pruner.begin(at) if at else pruner.prune()
    assert 0.94 < counted.flops / (planned.all - lapack) <= 1.0
