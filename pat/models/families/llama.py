"""Llama and what is built like it: Granite, Mistral, Qwen2, Qwen3, SmolLM3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection

MODEL_TYPES = ("llama", "granite", "mistral", "qwen2", "qwen3", "smollm3")


def anatomy(model: Any) -> Anatomy:
    """Pre-norm, gated MLP, grouped-query attention with a head dimension of its own."""
    config = model.config
    stack = f"{base_prefix(model)}layers"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layer_types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        query, key, value, output = (projection(model, f"{name}.self_attn.{x}_proj") for x in "qkvo")
        module = model.get_submodule(f"{name}.self_attn")
        norms = [f"{name}.self_attn.{x}" for x in ("q_norm", "k_norm") if hasattr(module, x)]
        attention = Attention(
            f"{name}.self_attn", query, key, value, output,
            query.num_outputs // head_dim, key.num_outputs // head_dim, head_dim,
            window if layer_types is None or layer_types[i] == "sliding_attention" else None,
            cached=True,
            extra=(f"{name}.input_layernorm", *norms),
        )  # fmt: skip
        gate, up, down = (projection(model, f"{name}.mlp.{x}_proj") for x in ("gate", "up", "down"))
        mlp = Mlp(f"{name}.mlp", (gate, up), down, (f"{name}.post_attention_layernorm",))
        layers.append(Layer(stack, i, (attention, mlp)))
    return describe(model, True, layers)


def drop_layers(config: Any, kept: Sequence[int]) -> None:
    """num_hidden_layers, the lists with an item for each layer and, where layers after the first ones slide,
    max_window_layers."""
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = sum(i < config.max_window_layers for i in kept)
    for each in ("layer_types", "no_rope_layers"):
        if (values := getattr(config, each, None)) is not None:
            setattr(config, each, [values[i] for i in kept])
    config.num_hidden_layers = len(kept)


def narrow(config: Any, kv_heads: int, neurons: int) -> None:
    """Set the head dimension explicitly, because hidden_size / num_attention_heads changes."""
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.num_attention_heads = config.num_attention_heads // config.num_key_value_heads * kv_heads
    config.num_key_value_heads = kv_heads
    config.intermediate_size = neurons


def resize(model: Any, attention: Attention, kv_heads: int) -> None:
    """Nothing: the forward takes the number of heads from the projections."""
