"""Llama and what is built like it, with a gated or a plain MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection

MODEL_TYPES = (
    *(
        "llama",
        "arcee",
        "cwm",
        "ernie4_5",
        "gemma",
        "granite",
        "ministral",
        "ministral3",
        "mistral",
        "nemotron",
        "olmo",
    ),
    *("qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2"),
)
INTO_NEURONS = ("gate_proj", "up_proj", "c_fc")
OUT_OF_NEURONS = ("down_proj", "c_proj")


def anatomy(model: Any) -> Anatomy:
    """Pre-norm, grouped-query attention with a head dimension of its own."""
    config = model.config
    stack = f"{base_prefix(model)}layers"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layer_types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        *inputs, output = (projection(model, f"{name}.self_attn.{x}_proj") for x in "qkvo")
        module = model.get_submodule(f"{name}.self_attn")
        norms = [f"{name}.self_attn.{x}" for x in ("q_norm", "k_norm") if hasattr(module, x)]
        attention = Attention(
            f"{name}.self_attn", tuple(inputs), output,
            output.num_inputs // head_dim, inputs[1].num_outputs // head_dim, head_dim,
            window if layer_types is None or layer_types[i] == "sliding_attention" else None,
            cached=True,
            extra=(f"{name}.input_layernorm", *norms),
        )  # fmt: skip
        maps = model.get_submodule(f"{name}.mlp")._modules
        into, out = (
            [projection(model, f"{name}.mlp.{x}") for x in xs if x in maps] for xs in (INTO_NEURONS, OUT_OF_NEURONS)
        )
        mlp = Mlp(f"{name}.mlp", tuple(into), out[0], (f"{name}.post_attention_layernorm",))
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
