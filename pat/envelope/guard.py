"""The guarded ramp: at each evaluation the envelope decides whether the schedules go on, hold, go back or stop.

    inside             go on: this state is the last good one
    outside            hold: no selection, until an evaluation is inside again
    still outside      go back to the last good state, in full; its masks become permanent, and the steps left heal
    no time is left    stop where it is good: its masks become permanent

What is decided is a function of the config and of what every checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

UNITS = 0.005  # how far what is reached may lie below what is asked for, as units are whole
Action = Literal["go on", "hold", "go back", "stop"]


@dataclass(frozen=True)
class Look:
    """What is known at an evaluation while pruning is under way."""

    inside: bool
    hard: bool  # everything is permanent
    outside: int  # evaluations in a row that were outside, with this one
    patience: int  # how many of them after the first are tolerated
    last: bool  # the run ends before the next one
    in_time: bool  # a ramp that goes on from here becomes permanent before the run ends


def decide(now: Look) -> Action:
    """What to do. In the hard phase nothing can be held: its steps heal, and the run's end decides (`Record.ends`)."""
    if now.hard:
        return "go on"
    if now.inside:
        return "stop" if now.last and not now.in_time else "go on"
    return "go back" if now.last or now.outside > now.patience else "hold"


@dataclass
class Record:
    """What the envelope has seen and decided. All of it is in every checkpoint, as plain values."""

    judged: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # evaluations, undone ones too
    outside: int = 0  # of the last ones in a row
    holds: int = 0
    good: dict[str, Any] | None = None  # step and sparsity of the last good state, which a checkpoint holds
    asked: float = 0.0  # the sparsity that the budgets ask for
    back: bool = False  # going back is decided, but not done yet
    undone: int | None = None  # the step from which the run went back
    stopped: str | None = None  # why the schedules were stopped

    def copy(self) -> Record:
        """A deep copy, which nothing that happens to this record changes."""
        return Record(**self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """A deep copy as plain values, from which `restore` makes an equal record."""
        return asdict(self)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the state of a checkpoint."""
        for each in fields(self):
            if each.name in saved:
                setattr(self, each.name, saved[each.name])

    def see(self, step: int, sparsity: float, figures: Mapping[str, Any], keeps: bool) -> None:
        """An evaluation, as pat.envelope.limits has it. One that is inside is the last good state, if it `keeps` or has
        more sparsity."""
        self.judged.append({"step": step, "sparsity": sparsity, **figures})
        self.outside = 0 if figures["inside"] else self.outside + 1
        if figures["inside"] and (keeps or self.good is None or sparsity > self.good["sparsity"]):
            self.good = {"step": step, "sparsity": sparsity}

    def ends(self, sparsity: float) -> None:
        """The run's last evaluation is judged: where it is outside, and less sparsity was good, go back to that."""
        if self.judged and not self.judged[-1]["inside"] and self.stopped is None and self.good is not None:
            self.back = self.good["sparsity"] < sparsity

    def gone_back(self, step: int) -> None:
        """Note that the run has gone back from `step` to the good state."""
        self.back, self.outside, self.undone, self.stopped = False, 0, step, "outside"
        for one in self.judged:
            if self.good and one["step"] > self.good["step"]:
                one["undone"] = True

    @property
    def good_step(self) -> int | None:
        """The step of the last good state; None where there is none."""
        return self.good["step"] if self.good else None

    @property
    def further(self) -> dict[str, Any] | None:
        """The last evaluation that was outside with more sparsity than is allowed: what going further costs."""
        allowed = self.good["sparsity"] if self.good else 0.0
        return next((one for one in self.judged[::-1] if not one["inside"] and one["sparsity"] > allowed), None)


def in_short(record: Record) -> dict[str, Any]:
    """For summary.json and for the lineage of a variant."""
    last = record.judged[-1] if record.judged else None
    return {
        "allowed_sparsity": record.good["sparsity"] if record.good else 0.0,
        "asked_sparsity": record.asked,
        "inside": last["inside"] if last else None,
        "good_step": record.good["step"] if record.good else None,
        "holds": record.holds,
        "went_back_from": record.undone,
        "stopped": record.stopped,
        "further": record.further,
        "evaluations": record.judged,
    }


def of_checkpoint(saved: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`in_short` of what a manifest holds; None where the run had no envelope, or had not pruned yet."""
    record = Record()
    record.restore(saved or {})
    return in_short(record) if record.judged else None


def in_words(found: Mapping[str, Any]) -> str:
    """`in_short` in a sentence or two."""
    allowed, asked, further = found["allowed_sparsity"], found["asked_sparsity"], found["further"]
    whole = found["stopped"] is None and allowed > asked - UNITS
    said = f"envelope: {'all of the' if whole else f'{allowed:.2%} is allowed of the'} {asked:.2%} asked for"
    said += " is allowed" if whole else ""
    if found["holds"]:
        said += f", after {found['holds']} hold{'s' if found['holds'] > 1 else ''}"
    if further and not whole:
        said += f"; at {further['sparsity']:.2%} (step {further['step']}) {measured(further)}"
    if found["stopped"] == "time":
        said += "; no steps were left to go further: raise train.num_steps"
    last = found["evaluations"][-1] if found["evaluations"] else None
    if last and not last["inside"] and not last.get("undone"):
        said += f"\nthe model at step {last['step']} is outside: {measured(last)}"
        if found["good_step"] != last["step"]:
            said += f"; step {found['good_step']} was inside: pat export --checkpoint good takes it"
    return said


def measured(one: Mapping[str, Any]) -> str:
    """`perplexity was 23.4, limit at most 22`."""
    return " and ".join(
        f"{metric} was {one['metrics'][metric]:.6g}, limit {said}" for metric, said in one["outside"].items()
    )
