"""The output contains texts, or does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from pat.common.keys import key
from pat.prompts.checks import Check, shown


class Contains(Check, frozen=True):
    """Every text of `all`, at least one of `any` and none of `none` is in the output."""

    name: Literal["contains"] = "contains"
    all: list[str] = key([], "texts that must be in it")
    any: list[str] = key([], "texts of which one must be in it")
    none: list[str] = key([], "texts that must not be in it")
    ignore_case: bool = key(True, "whether Yes and yes are equal")

    @model_validator(mode="after")
    def _wants_something(self) -> Contains:
        if not (self.all or self.any or self.none):
            raise ValueError("a check of contains needs all, any or none: lists of texts")
        if "" in (*self.all, *self.any, *self.none):
            raise ValueError("an empty text is in every output: give another")
        return self

    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """The first text that is missing or should not be there."""
        held = output.casefold() if self.ignore_case else output

        def has(text: str) -> bool:
            return (text.casefold() if self.ignore_case else text) in held

        for text in self.all:
            if not has(text):
                return f"{shown(text)} is not in it"
        if self.any and not any(has(text) for text in self.any):
            return f"none of {', '.join(map(shown, self.any))} is in it"
        return next((f"{shown(text)} is in it" for text in self.none if has(text)), None)
