"""Gemma 2 and 3 (text): like Llama, with a norm after each sublayer too, and norms that multiply by 1 + weight."""

from __future__ import annotations

from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, PostNorm, base_prefix, describe, projection
from pat.models.families.llama import drop_layers, narrow, resize

MODEL_TYPES = ("gemma2", "gemma3_text")

__all__ = ["MODEL_TYPES", "anatomy", "drop_layers", "narrow", "resize"]


def anatomy(model: Any) -> Anatomy:
    """Sandwich norms, h + norm(f(norm(h))), gated MLP, grouped-query attention with a head dimension of its own."""
    config = model.config
    stack = f"{base_prefix(model)}layers"
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        *inputs, output = (projection(model, f"{name}.self_attn.{x}_proj") for x in "qkvo")
        module = model.get_submodule(f"{name}.self_attn")
        norms = [f"{name}.self_attn.{x}" for x in ("q_norm", "k_norm") if hasattr(module, x)]
        after_attention, after_mlp = (_post_norm(f"{name}.post_{x}_layernorm") for x in ("attention", "feedforward"))
        attention = Attention(
            f"{name}.self_attn", tuple(inputs), output,
            output.num_inputs // config.head_dim, inputs[1].num_outputs // config.head_dim, config.head_dim,
            config.sliding_window if config.layer_types[i] == "sliding_attention" else None,
            cached=not getattr(config, "use_bidirectional_attention", None),
            extra=(f"{name}.input_layernorm", *norms, after_attention.module),
            post_norm=after_attention,
        )  # fmt: skip
        gate, up, down = (projection(model, f"{name}.mlp.{x}_proj") for x in ("gate", "up", "down"))
        before = f"{name}.pre_feedforward_layernorm"
        mlp = Mlp(f"{name}.mlp", (gate, up), down, (before, after_mlp.module), after_mlp)
        layers.append(Layer(stack, i, (attention, mlp)))
    return describe(model, True, layers)


def _post_norm(module: str) -> PostNorm:
    return PostNorm(module, f"{module}.weight", origin=1.0)
