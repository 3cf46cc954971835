"""The head of a classifier: whether the one among the weights fits the data's labels."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

from pat.common.text import few
from pat.schema import ModelConfig

CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")  # how the classes end
PRETRAINED = "head"  # ModernBERT's, outside the base model: it comes from the one that guesses masked words
DROPPED = "replaced_head."  # the name of the old head's weights while the others load; no model uses it


def is_of_head(kind: type, name: str) -> bool:
    """Whether a module or parameter of a model of this class belongs to a classifier's head: what lies outside
    the base model and no pretraining gives."""
    outside = name.partition(".")[0] not in (getattr(kind, "base_model_prefix", ""), PRETRAINED)
    return outside and kind.__name__.endswith(CLASSIFIERS)


def class_of(auto_model: Any, config: PretrainedConfig) -> type:
    """The class that an AutoModelFor... class builds of a config; where it has none, its own."""
    return auto_model._model_mapping.get(type(config), auto_model)


def labels_of(config: PretrainedConfig) -> list[str] | None:
    """The labels of the classifier in a config; None where its weights have no head, or are not said to have one."""
    if not any(name.endswith(CLASSIFIERS) for name in config.architectures or []):
        return None
    return names_of(config)


def names_of(config: PretrainedConfig) -> list[str]:
    """The labels of a config, or LABEL_0, LABEL_1, ... as transformers calls them."""
    names: dict[int, str] = dict(config.id2label or {})  # type: ignore[arg-type]
    return [str(names.get(i, f"LABEL_{i}")) for i in range(config.num_labels or 0)]


def set_pad_token(config: PretrainedConfig, pad_token_id: Any, classifies: bool) -> None:
    """Name the token that pads, where the config does not.

    A decoder that classifies reads its logits at the last token that is another one, so there it is always named.
    """
    decoder = config.model_type in CAUSAL and config.model_type not in MASKED
    for each in (config, config.get_text_config()):
        if (classifies and decoder) or getattr(each, "pad_token_id", None) is None:
            each.pad_token_id = pad_token_id


def check(cfg: ModelConfig, theirs: Sequence[str] | None, ours: Sequence[str]) -> None:
    """ValueError where the head that comes with model.path has other outputs, or the same labels in another order."""
    if theirs is None or cfg.init != "pretrained" or cfg.replace_head:
        return
    shuffled = list(ours) != list(theirs) and _plain(ours) != _plain(theirs)
    if len(theirs) != len(ours) or (shuffled and sorted(_plain(ours)) == sorted(_plain(theirs))):
        count = f"{len(theirs)} output{'s' * (len(theirs) != 1)}"
        raise ValueError(
            f"The head of model.path='{cfg.path}' has {count} ({few(theirs, str)}), but the data needs {len(ours)} "
            f"({few(ours, str)}{', in this order' if len(theirs) == len(ours) else ''}): take a new head with "
            "model.replace_head=true, or data with the model's labels."
        )


def note(cfg: ModelConfig, theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """A sentence on what becomes of the head, for the start; None where nothing changes."""
    if cfg.replace_head:
        return f"the head of {cfg.path} ({few(theirs, str)}) is replaced by a new one ({few(ours, str)})"
    taken = taken_for(theirs, ours)
    return taken and f"the head of {cfg.path} is kept, and its {taken}; a new head: model.replace_head=true"


def taken_for(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """In words, where a trained head names its labels otherwise than the data does."""
    if _plain(theirs) == _plain(ours) or all(re.fullmatch(r"LABEL_\d+", name) for name in theirs):
        return None
    return f"labels {few(theirs, str)} are taken for {few(ours, str)}"


def without_head(cfg: ModelConfig, auto_model: Any, config: PretrainedConfig) -> dict[str, Any]:
    """Options of `from_pretrained` with which ZeRO 3 leaves the head in the files out and makes a new one.

    Elsewhere transformers gives a weight its old name back where the new one is unknown: see `renew`.
    """
    if not (cfg.replace_head and is_deepspeed_zero3_enabled()):
        return {}
    kind: Any = class_of(auto_model, config)
    with no_init_weights(), torch.device("meta"):
        modules = [name for name, _ in kind(copy.deepcopy(config)).named_children()]
    return {"key_mapping": {rf"^{re.escape(name)}\.": DROPPED for name in modules if is_of_head(kind, name)}}


def renew(model: PreTrainedModel, rng_state: Tensor) -> None:
    """Initialise the head again, with the numbers that a model without one would have drawn from this state."""
    if is_deepspeed_zero3_enabled():
        return
    torch.set_rng_state(rng_state)
    for name, module in model.named_modules():
        if name and is_of_head(type(model), name):
            for item in (module, *module.parameters(recurse=False)):
                item._is_hf_initialized = False  # pyright: ignore  (transformers' own mark)
    model.initialize_weights()


def _plain(names: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in names]
