"""The config files of a run's model, without its weights: its export has the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pat.common.files import read_json, write_atomic, write_json

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
GENERATION = "generation_config.json"


def write(model: Any, folder: Path) -> None:
    """config.json, and generation_config.json of a model that generates: chat models name their ends there."""
    model.config.save_pretrained(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # `save_pretrained` refuses settings with which models of the hub are published
        write_atomic(folder / GENERATION, generation.to_json_string())


def drop_code(file: Path) -> None:
    """Take the names of classes in Python files of the base model (`auto_map`) out of a config, if there is one: the
    classes are transformers' own, and the files are not beside it."""
    content = read_json(file)
    if isinstance(content, dict) and content.pop("auto_map", None):
        write_json(file, content)
