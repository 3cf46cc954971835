"""The content of a mix, for people and as plain values, with warnings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from pat.prompts.mix import Mix

FEW = 30  # prompts of a slice, below which only large differences are seen


def summarise(mix: Mix) -> dict[str, Any]:
    """Prompts, their share of the traffic, checks and lengths of each slice, and sentences of warning."""
    whole = sum(prompt.weight for prompt in mix.prompts)
    everything = {"all": list(range(len(mix.prompts))), **mix.slices()}
    slices = []
    for name, positions in everything.items():
        prompts = [mix.prompts[i] for i in positions]
        words = [len(prompt.text.split()) for prompt in prompts]
        slices.append(
            {
                "slice": name,
                "prompts": len(prompts),
                "share": sum(prompt.weight for prompt in prompts) / whole,
                "checked": sum(bool(prompt.checks) for prompt in prompts),
                "with_reference": sum(prompt.reference is not None for prompt in prompts),
                "words": [float(q) for q in np.quantile(words, (0.5, 0.95))],
                "output_tokens": max(prompt.output_tokens or mix.head.output_tokens for prompt in prompts),
            }
        )
    return {
        "mix": mix.name,
        "file": str(mix.path),
        "description": mix.head.description,
        "checks": dict(Counter(str(check.name) for check in mix.checks()).most_common()),
        "slices": slices,
        "warnings": list(_warnings(mix)),
    }


def _warnings(mix: Mix) -> list[str]:
    found = []
    few = [f"{name} ({len(positions)})" for name, positions in mix.slices().items() if len(positions) < FEW]
    if few:
        found.append(f"few prompts: {', '.join(few)}; with fewer than {FEW} only large differences are seen")
    unchecked = sum(not prompt.checks and prompt.reference is None for prompt in mix.prompts)
    if unchecked:
        found.append(
            f"{unchecked} of {len(mix.prompts)} prompts have neither checks nor a reference: of these only agreement "
            "is measured"
        )
    shares = mix.head.weights.values()
    if shares and max(shares) < 1.0 and abs(sum(shares) - 1.0) > 0.01:
        found.append(f"mix.weights add up to {sum(shares):g}: each is taken as a share of that")
    weights = np.array([prompt.weight for prompt in mix.prompts])
    effective = float(weights.sum() ** 2 / (weights**2).sum())  # Kish 1965
    if effective < len(weights) / 2:
        found.append(f"weights differ so much that {len(weights)} prompts tell as much as {effective:.0f} equal ones")
    return found


def table(summary: dict[str, Any]) -> Any:
    """A table with a line for each slice."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("slice", overflow="fold")
    for column in ("prompts", "share", "checked", "reference", "words, half", "95 %", "output tokens, if generated"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in summary["slices"]:
        made.add_row(
            Text(row["slice"]),
            f"{row['prompts']:,}",
            f"{row['share']:.1%}",
            f"{row['checked']:,}",
            f"{row['with_reference']:,}",
            *(f"{words:.0f}" for words in row["words"]),
            f"{row['output_tokens']}",
        )
    return made
