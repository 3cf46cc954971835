"""GPT-NeoX, so Pythia: query, key and value in one matrix, head by head; attention and MLP may stand side by side."""

from __future__ import annotations

from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection
from pat.models.families.bert import drop_layers, narrow

MODEL_TYPES = ("gpt_neox",)

__all__ = ["MODEL_TYPES", "anatomy", "drop_layers", "narrow", "resize"]


def anatomy(model: Any) -> Anatomy:
    """Pre-norm, plain MLP, as many KV heads as heads."""
    config = model.config
    stack = f"{base_prefix(model)}layers"
    heads = config.num_attention_heads
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        fused, output = (projection(model, f"{name}.attention.{x}") for x in ("query_key_value", "dense"))
        attention = Attention(
            f"{name}.attention", (fused,), output, heads, heads, output.num_inputs // heads,
            cached=True, extra=(f"{name}.input_layernorm",),
        )  # fmt: skip
        up, down = (projection(model, f"{name}.mlp.{x}") for x in ("dense_h_to_4h", "dense_4h_to_h"))
        mlp = Mlp(f"{name}.mlp", (up,), down, (f"{name}.post_attention_layernorm",))
        layers.append(Layer(stack, i, (attention, mlp)))
    return describe(model, True, layers)


def resize(model: Any, attention: Attention, kv_heads: int) -> None:
    """Nothing: the forward takes the number of heads from the projection."""
