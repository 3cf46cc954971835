"""Whether what pat promises holds on this machine: checks of the machine, then real ranks.

    machine.py   checks without ranks: devices, compiler, disk, shared memory, locks
    ranks.py     what the ranks do: reductions, saving, and the parity run at ZeRO 1, 2 and 3
    visit.py     starts them, and judges their results

A check is a function that returns a `Finding`; none raises because of a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.text import Text

WELL, MIND, BROKEN = "well", "mind", "broken"  # mind: slower or tighter than it could be, but not wrong
_MARKS = {WELL: ("✓", "green"), MIND: ("!", "yellow"), BROKEN: ("✗", "bold red")}


@dataclass(frozen=True)
class Finding:
    """What a check found, in a sentence."""

    check: str
    state: str  # WELL | MIND | BROKEN
    said: str
    figures: dict[str, Any] = field(default_factory=dict)

    def line(self) -> Text:
        """With a tick, an exclamation mark or a cross."""
        mark, style = _MARKS[self.state]
        return Text.assemble((f"{mark} ", style), (f"{self.check}: ", "bold"), self.said)


def broken(findings: Sequence[Finding]) -> bool:
    """Whether a promise does not hold here."""
    return any(finding.state == BROKEN for finding in findings)


def verdict(findings: Sequence[Finding], device: str, ranks: int) -> str:
    """All findings in a sentence or two."""
    bad = [finding.check for finding in findings if finding.state == BROKEN]
    mind = [finding.check for finding in findings if finding.state == MIND]
    where = f"with {ranks} rank{'s' * (ranks > 1)} on {device}"
    if bad:
        text = f"Not all is well {where}: see {', '.join(bad)}."
    else:
        text = f"All is well {where}: what pat promises holds here."
    if mind and not bad:
        text += f" It could be better: {', '.join(mind)}."
    if device == "cpu":
        text += " Not run on a GPU: nothing here says how one behaves."
    return text


def as_json(findings: Sequence[Finding], device: str, ranks: int, **figures: Any) -> dict[str, Any]:
    """Plain values, for a file."""
    return {
        "well": not broken(findings),
        "verdict": verdict(findings, device, ranks),
        "device": device,
        "ranks": ranks,
        **figures,
        "findings": [asdict(finding) for finding in findings],
    }
