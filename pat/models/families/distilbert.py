"""DistilBERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection
from pat.models.families import keep_all_heads

MODEL_TYPES = ("distilbert",)

ONCE = ("ForSequenceClassification", "ForMultipleChoice")  # read the first token only


def anatomy(model: Any) -> Anatomy:
    """Post-norm, plain MLP, as many KV heads as heads."""
    config = model.config
    stack = f"{base_prefix(model)}transformer.layer"
    layers = []
    for i in range(config.n_layers):
        name = f"{stack}.{i}"
        *inputs, output = (projection(model, f"{name}.attention.{x}_lin") for x in ("q", "k", "v", "out"))
        attention = Attention(
            f"{name}.attention", tuple(inputs), output,
            config.n_heads, config.n_heads, output.num_inputs // config.n_heads,
        )  # fmt: skip
        mlp = Mlp(f"{name}.ffn", (projection(model, f"{name}.ffn.lin1"),), projection(model, f"{name}.ffn.lin2"))
        layers.append(Layer(stack, i, (attention, mlp)))
    whole = type(model).__name__.endswith(ONCE)
    return describe(model, False, layers, lambda name: whole)


def drop_layers(config: Any, kept: Sequence[int]) -> None:
    """Set n_layers to how many are kept, in place; a DistilBERT layer has no setting of its own."""
    config.n_layers = len(kept)


def narrow(config: Any, kv_heads: int, neurons: int) -> None:
    """The width of the MLP. ValueError for fewer heads: the stock class divides the hidden size by their number."""
    keep_all_heads(config, "dim / n_heads", kv_heads, config.n_heads)
    config.hidden_dim = neurons


def resize(model: Any, attention: Attention, kv_heads: int) -> None:
    """The number of heads, for code that reads it: the forward takes it from the projections."""
    model.get_submodule(attention.name).n_heads = kv_heads
