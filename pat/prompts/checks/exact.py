"""The output is a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pat.common.keys import key
from pat.prompts.checks import Check, shown


class Exact(Check, frozen=True):
    """The output, without spaces around it, is the text."""

    name: Literal["exact"] = "exact"
    text: str = key(..., "what the output must be")
    ignore_case: bool = key(False, "whether Yes and yes are equal")

    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """Whether they differ, both without surrounding spaces."""
        given, wanted = output.strip(), self.text.strip()
        if given == wanted or (self.ignore_case and given.casefold() == wanted.casefold()):
            return None
        return f"{shown(given)} is not {shown(wanted)}"
