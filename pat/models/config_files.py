"""The config files of a run's model, without its weights: its export has the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from pat.common.files import read_json, write_atomic, write_json

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
GENERATION = "generation_config.json"


def add_ends(model: Any, tokens: Sequence[int]) -> None:
    """Let a model that generates stop at these tokens, too, wherever its generation_config.json is read."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    own = generation.eos_token_id
    ends = own if isinstance(own, list) else [] if own is None else [own]
    if more := [token for token in tokens if token not in ends]:
        generation.eos_token_id = [*ends, *more]
        generation._from_model_config = False  # transformers 4 may make such a one anew, of config.json


def write(model: Any, folder: Path) -> None:
    """config.json, and generation_config.json of a model that generates: chat models name their ends there."""
    model.config.save_pretrained(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # `save_pretrained` refuses settings with which models of the hub are published
        write_atomic(folder / GENERATION, generation.to_json_string())


def write_old_rope_keys(folder: Path) -> None:
    """Beside `rope_parameters`, which is all that transformers 5 writes of rotary embeddings, the keys of version 4: it
    knows no other, and takes a base of 10,000 in silence where they are missing. Left out where 5 would read them as
    something else."""
    file = folder / CONFIG
    content = read_json(file) or {}
    old = _old_rope_keys(content)
    if not old or any(key in content for key in old):
        return
    own: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    write_json(file, content | old)
    read: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if _without_type(read.rope_parameters) != _without_type(own.rope_parameters):
        write_json(file, content)


def _without_type(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`type` is what `rope_type` was once called; 5 keeps it, and reads it only where there is no `rope_type`."""
    return {key: value for key, value in rope.items() if key != "type" or "rope_type" not in rope}


def _old_rope_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    rope = content.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    full, sliding = (rope.get(kind) for kind in ("full_attention", "sliding_attention"))  # Gemma 3, ModernBERT
    if content.get("model_type") == "modernbert" and full and sliding:
        return {"global_rope_theta": full["rope_theta"], "local_rope_theta": sliding["rope_theta"]}
    made = {} if full is None or sliding is None else {"rope_local_base_freq": sliding.get("rope_theta")}
    own = rope if full is None else full
    if own.get("rope_theta") is None:
        return {}
    scaling = {key: value for key, value in own.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if content.get("model_type") == "phi3" and scaling.get("rope_type") == "longrope":  # it takes these and no others
        scaling = {"type": "longrope"} | {key: scaling[key] for key in ("short_factor", "long_factor")}
    neox = content.get("model_type") == "gpt_neox"
    made |= {"rotary_emb_base" if neox else "rope_theta": own["rope_theta"]}
    made |= {"rope_scaling": scaling if scaling.get("rope_type", scaling.get("type", "default")) != "default" else None}
    if (share := own.get("partial_rotary_factor")) is not None:
        made["rotary_pct" if neox else "partial_rotary_factor"] = share
    return made


def drop_code(file: Path) -> None:
    """Take the names of classes in Python files of the base model (`auto_map`) out of a config, if there is one: the
    classes are transformers' own, and the files are not beside it."""
    content = read_json(file)
    if isinstance(content, dict) and content.pop("auto_map", None):
        write_json(file, content)
