"""Families of models. One file each, found by scanning this package; a file is

MODEL_TYPES                          the Hugging Face model types that it describes
anatomy(model)                       where its heads, neurons and layers are
drop_layers(config, kept)            cuts a config to these layers of the anatomy, in place
narrow(config, kv_heads, neurons)    sets the widths that all layers have, in place. ValueError where the stock
                                     class cannot be built with them
resize(model, attention, kv_heads)   sets what the stock forward of one attention derives from the config
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from pat.common import scan
from pat.models.anatomy import Anatomy, Attention, Mlp

OWN_LOADER = "set budget.hf_compatible=false and load the exported model with pat.export.load"


def keep_all_heads(config: Any, formula: str, left: int, heads: int) -> None:
    """ValueError for fewer heads, where a stock class computes the head dimension from their number by `formula`."""
    if left != heads:
        raise ValueError(
            f"A stock {config.model_type} takes {formula} as the head dimension, so it cannot have {left} of {heads} "
            f"heads: prune ffn or layers, or {OWN_LOADER}."
        )


@cache
def families() -> Mapping[str, Any]:
    """Every family's module, by model type, sorted."""
    return scan.by_name(
        __name__, lambda module: [(name, module) for name in module.MODEL_TYPES], "families' model types"
    )


def family(model_type: str) -> Any:
    """The module of a model type. ValueError where none describes it."""
    if model_type not in families():
        raise ValueError(
            f"pat does not know where heads, neurons and layers are in a '{model_type}'; it knows "
            f"{', '.join(families())}. Prune its weights (recipe=encoder, recipe=decoder, pat prune --sparsity), or "
            f"write pat/models/families/{model_type.replace('-', '_')}.py."
        )
    return families()[model_type]


def anatomy(model: nn.Module) -> Anatomy:
    """The anatomy of a Hugging Face model. ValueError for a family that is not here, and for what was cut by pat."""
    config: Any = model.config
    if getattr(config, "pat_widths", None) is not None:
        raise ValueError(
            "This model was exported with widths of its own (pat_widths in its config.json), and pat cannot prune its "
            "structures again: prune the model that it was made from, or its weights."
        )
    return family(config.model_type).anatomy(model)


def shrink(
    config: Any,
    anatomy: Anatomy,
    kept: Sequence[int],  # indices of the layers that stay
    units: Sequence[Sequence[int]],  # per layer that stays and sublayer: its width
) -> Any:
    """The stock config of the smaller model. ValueError where no stock config describes it."""
    widths: dict[type, set[int]] = {Attention: set(), Mlp: set()}
    for index, row in zip(kept, units, strict=True):
        for sublayer, width in zip(anatomy.layers[index].sublayers, row, strict=True):
            widths[type(sublayer)].add(width)
    for kind, word in ((Attention, "KV heads"), (Mlp, "neurons")):
        if len(widths[kind]) > 1 or 0 in widths[kind]:
            raise ValueError(
                f"The layers would have {', '.join(map(str, sorted(widths[kind])))} {word}, and a stock "
                f"{anatomy.model_type} has one width for all and at least 1: {OWN_LOADER}."
            )
    smaller = drop_layers(config, anatomy, kept)
    file = family(anatomy.model_type)
    file.narrow(smaller, *(next(iter(widths[kind])) for kind in (Attention, Mlp)))
    try:
        smaller.validate()
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ValueError(f"No stock {anatomy.model_type} has this shape: {reason} Or {OWN_LOADER}.") from error
    return smaller


def drop_layers(config: Any, anatomy: Anatomy, kept: Sequence[int]) -> Any:
    """A copy of the config with these layers only. ValueError where none stays."""
    if not kept:
        raise ValueError("No layer would be left: keep at least 1.")
    smaller = copy.deepcopy(config)
    if len(kept) < len(anatomy.layers):
        family(anatomy.model_type).drop_layers(smaller, list(kept))
    return smaller
