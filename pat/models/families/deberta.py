"""DeBERTa v2 and v3: queries and keys of tokens also meet keys and queries of relative positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Dense, Layer, Mlp, base_prefix, describe, projection
from pat.models.families.bert import narrow, resize

MODEL_TYPES = ("deberta-v2",)

__all__ = ["MODEL_TYPES", "anatomy", "drop_layers", "narrow", "resize"]

ONCE = ("ForSequenceClassification", "ForMultipleChoice")  # read the first token only
DIRECTIONS = ("c2p", "p2c")  # content to position, and back


def anatomy(model: Any) -> Anatomy:
    """Post-norm, plain MLP, as many KV heads as heads. ValueError where positions have projections of their own."""
    config = model.config
    relative = getattr(config, "relative_attention", False)
    if relative and not getattr(config, "share_att_key", False):
        raise ValueError(
            f"Positions have projections of their own in a '{config.model_type}' with share_att_key=false, and pat "
            "cannot cut these: prune its weights (recipe=encoder)."
        )
    stack = f"{base_prefix(model)}encoder.layer"
    heads = config.num_attention_heads
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        inputs = tuple(projection(model, f"{name}.attention.self.{x}_proj") for x in ("query", "key", "value"))
        output = projection(model, f"{name}.attention.output.dense")
        attention = Attention(
            f"{name}.attention.self", inputs, output, heads, heads, output.num_inputs // heads,
            positions=_positions(model.get_submodule(f"{name}.attention.self")) if relative else 0,
        )  # fmt: skip
        up, down = (projection(model, f"{name}.{x}.dense") for x in ("intermediate", "output"))
        layers.append(Layer(stack, i, (attention, Mlp(f"{name}.intermediate", (up,), down))))
    whole = type(model).__name__.endswith(ONCE)
    found = describe(model, False, layers, lambda name: whole and not name.endswith("embed_proj"))
    return replace(found, dense=(*found.dense, *_convolution(model, f"{base_prefix(model)}encoder.conv.conv")))


def _convolution(model: Any, name: str) -> Iterator[Dense]:
    """What some have behind the first layer: a linear map of each token and its neighbours."""
    conv = dict(model.named_modules()).get(name)
    if conv is not None:
        yield Dense(name, conv.kernel_size[0] * conv.in_channels // conv.groups, conv.out_channels, once=False)


def _positions(attention: Any) -> int:
    """Both ways up to the longest distance, in each direction."""
    return 2 * attention.pos_ebd_size * sum(each in attention.pos_att_type for each in DIRECTIONS)


def drop_layers(config: Any, kept: Sequence[int]) -> None:
    """Set num_hidden_layers to how many are kept, in place. ValueError with a convolution behind the first layer."""
    if getattr(config, "conv_kernel_size", 0) and kept[0] != 0:
        raise ValueError(
            f"This {config.model_type} has a convolution behind its first layer (conv_kernel_size), so that layer must "
            "stay: prune ffn."
        )
    config.num_hidden_layers = len(kept)
