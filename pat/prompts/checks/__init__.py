"""When an output is right. A check is one file with one class, found by the name it has in a mix."""

from __future__ import annotations

import re
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pat.common import scan
from pat.common.errors import invalid
from pat.common.keys import Section
from pat.common.text import did_you_mean


class Check(Section, ABC, frozen=True):
    """A subclass declares `name: Literal["NAME"] = "NAME"` and its keys."""

    name: str

    def said(self) -> dict[str, Any]:
        """Its keys as in a mix, without those at their defaults."""
        return self.model_dump(exclude_defaults=True, by_alias=True, warnings=False)

    def ready(self, folder: Path, allow_code: bool) -> None:
        """Check and load what depends on the folder of the mix's file. Raises ValueError."""

    @abstractmethod
    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """Why the output is not right; None where it is. `prompt`: the prompt's keys as in the mix."""


@cache
def classes() -> Mapping[str, type[Check]]:
    """Every check, by its name."""
    return scan.by_name(__name__, _named, "checks")


def parse(value: Any) -> Check:
    """The check that `{name: NAME, ...}` describes. ValueError for what does not exist."""
    if isinstance(value, Check):
        return value
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in classes():
        known = list(classes())
        raise ValueError(
            f"{value!r} is not a check: give {{name: NAME, ...}}, NAME one of {', '.join(known)}"
            + (did_you_mean(name, known) if isinstance(name, str) else "")
        )
    try:
        return classes()[name].model_validate(value)
    except ValidationError as error:
        # A fault of the whole check has no key, and its sentence no name before it.
        raise ValueError(f"{name}: {invalid(error, classes()[name]).removeprefix(': ')}") from None


def shown(text: str, most: int = 60) -> str:
    """A text in quotes, on one line, shortened to fit into a sentence."""
    text = re.sub(r"\s+", " ", text).strip()
    return repr(text if len(text) <= most else f"{text[: most - 3]}...")


def _named(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    for cls in vars(module).values():
        if isinstance(cls, type) and issubclass(cls, Check) and cls.__module__ == module.__name__:
            yield str(cls.model_fields["name"].default), cls
