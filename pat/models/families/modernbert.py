"""ModernBERT: query, key and value in one matrix, and both halves of its gated MLP in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection
from pat.models.families.bert import narrow

MODEL_TYPES = ("modernbert",)

__all__ = ["MODEL_TYPES", "anatomy", "drop_layers", "narrow", "resize"]

ONCE = ("ForSequenceClassification", "ForMultipleChoice")  # pool first


def anatomy(model: Any) -> Anatomy:
    """Pre-norm, gated MLP, as many KV heads as heads."""
    config = model.config
    stack = f"{base_prefix(model)}layers"
    heads = config.num_attention_heads
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        output = projection(model, f"{name}.attn.Wo")
        width = output.num_inputs
        inputs = tuple(projection(model, f"{name}.attn.Wqkv", x * width, width) for x in range(3))
        extra = (f"{name}.attn_norm",) if i else ()  # what goes into the first attention is normed already
        attention = Attention(f"{name}.attn", inputs, output, heads, heads, width // heads, extra=extra)
        down = projection(model, f"{name}.mlp.Wo")
        n = down.num_inputs
        halves = tuple(projection(model, f"{name}.mlp.Wi", start, n) for start in (0, n))
        layers.append(Layer(stack, i, (attention, Mlp(f"{name}.mlp", halves, down, (f"{name}.mlp_norm",)))))
    whole = type(model).__name__.endswith(ONCE)
    return describe(model, True, layers, lambda name: whole)


def drop_layers(config: Any, kept: Sequence[int]) -> None:
    """num_hidden_layers and the kinds of attention. ValueError without the first layer: only that one has no norm
    before its attention."""
    if kept[0] != 0:
        raise ValueError(
            f"The first layer of a stock {config.model_type} has no norm before its attention, so none of the others "
            "can take its place: prune ffn."
        )
    config.layer_types = [config.layer_types[i] for i in kept]
    config.num_hidden_layers = len(kept)


def resize(model: Any, attention: Attention, kv_heads: int) -> None:
    """Nothing: the forward takes the number of heads from the projection."""
