"""The output matches a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from pat.common.keys import key
from pat.prompts.checks import Check, shown


class Regex(Check, frozen=True):
    """The pattern is found in the output, or is all of it. Python's `re`, `^` and `$` at the ends of lines."""

    name: Literal["regex"] = "regex"
    pattern: str = key(..., "what is looked for")
    whole: bool = key(False, "whether it must match the whole output without spaces around it")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise ValueError(f"{shown(pattern)} is not a regular expression: {error}") from None
        return pattern

    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """Whether it is found."""
        pattern = re.compile(self.pattern, re.MULTILINE)
        found = pattern.fullmatch(output.strip()) if self.whole else pattern.search(output)
        return None if found else f"{shown(output)} does not match {shown(self.pattern)}"
