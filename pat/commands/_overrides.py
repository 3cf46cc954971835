"""From a command's own options to keys of the config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pat.config.quoting import quoted
from pat.schema import ENDINGS


def of_file(option: str, file: str) -> list[str]:
    """The data group that a local file's name says. Raises ValueError."""
    source = ENDINGS.get(Path(file).suffix)
    if source is None:
        raise ValueError(f"{option} {file} must end in {', '.join(ENDINGS)}; other data: data.source=...")
    return [f"data={source}", f"data.train={quoted(file)}"]


def one_model(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the model, the keys) among a command's words. Raises ValueError for two models."""
    keys = [word for word in words if ("=" in word and not Path(word).is_dir()) or word.startswith("~")]
    models = [word for word in words if word not in keys]
    if len(models) > 1:
        raise ValueError(f"{' and '.join(models)} are {len(models)} models: give one")
    return next(iter(models), None), keys


def under(defaults: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The defaults that no key replaces, then the keys."""
    given = {key.lstrip("+").partition("=")[0] for key in keys if not key.startswith("~")}
    return [*(each for each in defaults if each.partition("=")[0] not in given), *keys]
