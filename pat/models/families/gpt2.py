"""GPT-2: Conv1D (weights stored as inputs x outputs), query, key and value in one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection
from pat.models.families import keep_all_heads

MODEL_TYPES = ("gpt2",)


def anatomy(model: Any) -> Anatomy:
    """Pre-norm, plain MLP, as many KV heads as heads. ValueError with cross-attention."""
    config = model.config
    if config.add_cross_attention:
        raise ValueError("pat does not prune a 'gpt2' with add_cross_attention=true: set it to false.")
    stack = f"{base_prefix(model)}h"
    hidden, heads = config.n_embd, config.n_head
    layers = []
    for i in range(config.n_layer):
        name = f"{stack}.{i}"
        inputs = tuple(projection(model, f"{name}.attn.c_attn", x * hidden, hidden) for x in range(3))
        output = projection(model, f"{name}.attn.c_proj")
        attention = Attention(
            f"{name}.attn", inputs, output, heads, heads, hidden // heads,
            cached=True, extra=(f"{name}.ln_1",),
        )  # fmt: skip
        mlp = Mlp(
            f"{name}.mlp",
            (projection(model, f"{name}.mlp.c_fc"),),
            projection(model, f"{name}.mlp.c_proj"),
            (f"{name}.ln_2",),
        )
        layers.append(Layer(stack, i, (attention, mlp)))
    return describe(model, True, layers, lambda name: "multiple_choice_head" in name)


def drop_layers(config: Any, kept: Sequence[int]) -> None:
    """n_layer. ValueError where a layer's scale depends on its position and that changes."""
    if config.scale_attn_by_inverse_layer_idx and list(kept) != list(range(len(kept))):
        raise ValueError(
            "A gpt2 with scale_attn_by_inverse_layer_idx=true scales attention by the position of the layer, so only "
            "its last layers can be dropped: prune ffn, or set it to false before fine-tuning."
        )
    config.n_layer = len(kept)


def narrow(config: Any, kv_heads: int, neurons: int) -> None:
    """The width of the MLP. ValueError for fewer heads: the stock class divides the hidden size by their number."""
    keep_all_heads(config, "n_embd / n_head", kv_heads, config.n_head)
    config.n_inner = neurons


def resize(model: Any, attention: Attention, kv_heads: int) -> None:
    """The width at which the fused output is split into query, key and value."""
    module = model.get_submodule(attention.name)
    module.num_heads = kv_heads
    module.split_size = kv_heads * attention.head_dim
