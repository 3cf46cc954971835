"""Phi-3 and Phi-4: like Llama, with query, key and value in one matrix, and gate and up in another."""

from __future__ import annotations

import copy
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection
from pat.models.families.llama import drop_layers, narrow

MODEL_TYPES = ("phi3",)

__all__ = ["MODEL_TYPES", "anatomy", "drop_layers", "narrow", "resize"]


def anatomy(model: Any) -> Anatomy:
    """Pre-norm, gated MLP, grouped-query attention."""
    config = model.config
    stack = f"{base_prefix(model)}layers"
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        output = projection(model, f"{name}.self_attn.o_proj")
        head_dim = output.num_inputs // heads
        sizes = heads * head_dim, kv_heads * head_dim, kv_heads * head_dim
        starts = 0, sizes[0], sizes[0] + sizes[1]
        inputs = (projection(model, f"{name}.self_attn.qkv_proj", *x) for x in zip(starts, sizes, strict=True))
        attention = Attention(
            f"{name}.self_attn", tuple(inputs), output, heads, kv_heads, head_dim, config.sliding_window,
            cached=True, extra=(f"{name}.input_layernorm",),
        )  # fmt: skip
        down = projection(model, f"{name}.mlp.down_proj")
        n = down.num_inputs
        gate, up = (projection(model, f"{name}.mlp.gate_up_proj", start, n) for start in (0, n))
        mlp = Mlp(f"{name}.mlp", (gate, up), down, (f"{name}.post_attention_layernorm",))
        layers.append(Layer(stack, i, (attention, mlp)))
    return describe(model, True, layers)


def resize(model: Any, attention: Attention, kv_heads: int) -> None:
    """The numbers of heads, by which the forward splits the fused output; one of them it takes from the config."""
    module = model.get_submodule(attention.name)
    module.config = copy.copy(module.config)
    module.config.num_attention_heads = attention.group * kv_heads
    module.num_key_value_heads = kv_heads
