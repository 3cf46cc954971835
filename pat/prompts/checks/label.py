"""The output is a label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from pat.common.keys import key
from pat.prompts.checks import Check, shown


class Label(Check, frozen=True):
    """A classifier's class, or the first of `labels` that a generated text has as a word of its own."""

    name: Literal["label"] = "label"
    label: str = key(..., "the right label")
    labels: list[str] = key([], "all labels; empty: the output is the label, but for case and punctuation around it")

    @model_validator(mode="after")
    def _is_among_them(self) -> Label:
        if self.labels and self.label not in self.labels:
            raise ValueError(f"the label {self.label!r} is not one of labels: {', '.join(self.labels)}")
        return self

    def read(self, output: str) -> str | None:
        """The label that the output gives; None where it gives none of them."""
        if not self.labels:
            return _bare(output)
        places = {}
        for label in self.labels:
            found = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", output, re.IGNORECASE)
            if found:
                places[label] = found.start(), -len(label)  # of "not good" and "good" at one place the longer
        return min(places, key=lambda label: places[label], default=None)

    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """Another label, or none."""
        read = self.read(output)
        if read is not None and _bare(read) == _bare(self.label):
            return None
        return f"the label is {shown(read)}, not {shown(self.label)}" if read else f"{shown(output)} has no label"


def _bare(text: str) -> str:
    said = text.strip().casefold()
    return said.strip(".,;:!?\"'`*()[] ") or said  # a label may be nothing but punctuation, as *** is
