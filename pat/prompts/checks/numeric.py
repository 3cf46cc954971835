"""The output has a number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pat.common.keys import Finite, key
from pat.prompts.checks import Check, shown

_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?")

ROUNDING = 1e-12  # relative: 3.13 is within 0.01 of 3.14, whatever their last bits


class Numeric(Check, frozen=True):
    """|number - value| <= max(abs, rel |value|): the last number of the output, as in GSM8K, or the first."""

    name: Literal["numeric"] = "numeric"
    value: Finite = key(..., "the right number")
    abs: Finite = key(0.0, "how far off it may be", ge=0)
    rel: Finite = key(0.0, "how far off it may be, as a share of the value", ge=0)
    which: Literal["first", "last"] = key("last", "which number of the output counts")

    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """No number, or one that is too far off."""
        found = [match[0] for match in _NUMBER.finditer(output)]
        if not found:
            return f"{shown(output)} has no number"
        number = float(found[0 if self.which == "first" else -1].replace(",", "").replace("\u2212", "-"))
        allowed = max(self.abs, self.rel * math.fabs(self.value))
        rounding = ROUNDING * max(math.fabs(number), math.fabs(self.value)) if allowed else 0.0
        if math.isclose(number, self.value, rel_tol=0.0, abs_tol=allowed + rounding):
            return None
        return f"{number:g} is not {self.value:g}"
