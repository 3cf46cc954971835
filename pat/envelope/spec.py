"""The envelope: limits by the names of figures. docs/gate.md describes it with an example.

envelope = parse({"accuracy": {"drop": 0.01}, "latency_p95": {"ratio": 0.7}, "slices.drop": 0.03})
envelope.limits["accuracy"].drop, envelope.slices.drop
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, model_validator

from pat.common.errors import invalid
from pat.common.keys import Finite, Section, key
from pat.common.text import did_you_mean
from pat.common.yaml_files import read_yaml
from pat.envelope.figures import SHARES, figures

SLICES = "slices"
BOUNDS = ("min", "max", "drop", "rise", "ratio")
BELOW = ("min", "drop")  # bounds of figures that are better when higher; the others have max and rise
ABOVE = ("max", "rise")
AnyLimit = TypeVar("AnyLimit", bound="Limit")


class Limit(Section, frozen=True):
    """What one figure may be; all bounds that are given must hold."""

    min: Finite | None = key(None, "at least this, where higher is better")
    max: Finite | None = key(None, "at most this, where lower is better")
    drop: Finite | None = key(None, "at most this much below the baseline, where higher is better", ge=0)
    rise: Finite | None = key(None, "at most this much above the baseline, where lower is better", ge=0)
    ratio: Finite | None = key(
        None, "share of the baseline: at most this where lower is better, at least this where higher is", gt=0
    )
    least: int | None = key(None, "samples that a slice needs to be judged, for `slices` only; null: 1", ge=1)
    dimensions: list[str] | None = key(
        None, "dimensions that are judged, as [domain], for `slices` only; null: all, label and form too"
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Limit:
        if not self.bounds():
            raise ValueError(f"there is no limit: give one or more of {', '.join(BOUNDS)}")
        return self

    def bounds(self) -> dict[str, float]:
        """The bounds that are given."""
        return {name: value for name in BOUNDS if (value := getattr(self, name)) is not None}

    def relative(self) -> list[str]:
        """The bounds that need a baseline."""
        return [bound for bound in self.bounds() if bound not in ("min", "max")]


class Slices(Limit, frozen=True):
    """What the figure of every slice may be: accuracy, the loss or the squared error; of a mix, what passed."""

    least: int = key(1, "samples or prompts that a slice needs to be judged", ge=1)

    def judges(self, slice_: str) -> bool:
        """Whether DIMENSION=VALUE is of a dimension that is judged."""
        return self.dimensions is None or slice_.partition("=")[0] in self.dimensions

    def check(self, slices: Iterable[str]) -> None:
        """ValueError where a dimension that is to be judged is not among these DIMENSION=VALUE."""
        known = sorted({each.partition("=")[0] for each in slices})
        unknown = next((each for each in self.dimensions or () if each not in known), None)
        if unknown is not None:
            raise ValueError(
                f"slices.dimensions has {unknown}, but there is {' and '.join(known) or 'no slice'}: name these, or "
                "give data with that slice (data.slice_column, or a mix)"
            )

    def of(self, higher_is_better: bool) -> Limit | None:
        """The bounds that fit a figure of this direction; None: none does."""
        wrong = ABOVE if higher_is_better else BELOW
        bounds = {name: value for name, value in self.bounds().items() if name not in wrong}
        return Limit.model_validate(bounds) if bounds else None


class Envelope(Section, frozen=True):
    """Limits on figures of a variant, some of them against those of a baseline."""

    limits: dict[str, Limit] = key({}, "limits by figure")
    slices: Slices | None = key(None, "limits of every slice")

    def said(self) -> dict[str, Any]:
        """As plain values, from which `parse` makes an equal envelope."""
        made: dict[str, Any] = {name: limit.bounds() for name, limit in self.limits.items()}
        if self.slices is not None:
            made[SLICES] = self.slices.bounds() | ({} if self.slices.least == 1 else {"least": self.slices.least})
            made[SLICES] |= {} if self.slices.dimensions is None else {"dimensions": self.slices.dimensions}
        return made

    def relative(self) -> list[str]:
        """The limits that need a baseline, as accuracy.drop."""
        every = {**self.limits, **({} if self.slices is None else {SLICES: self.slices})}
        return [f"{name}.{bound}" for name, limit in every.items() for bound in limit.relative()]


def parse(value: Any) -> Envelope:
    """The envelope of a mapping; a dotted key, `slices.min: 0.7`, is one of a section. Raises ValueError."""
    if isinstance(value, Envelope):
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError("the envelope is empty: give limits, as envelope.accuracy.drop=0.01")
    limits, slices = dict[str, Limit](), None
    for name, bounds in nested(value).items():
        if name == SLICES:
            slices = _limit(name, bounds, Slices)
            _check_shares(SLICES, {each: slices.bounds().get(each) for each in BELOW})  # those of a loss are the others
            continue
        known = figures()
        if name not in known:
            named = sorted([*known, SLICES])
            raise ValueError(
                f"there is no figure '{name}' to limit; there are {', '.join(named)}{did_you_mean(str(name), named)}"
            )
        limits[name] = limit = _limit(name, bounds, Limit)
        if limit.least is not None or limit.dimensions is not None:
            which = "dimensions" if limit.least is None else "least"
            raise ValueError(f"{name}.{which}: only {SLICES} have it, for {name} is over all samples: leave it out")
        if name in SHARES:
            _check_shares(name, {each: limit.bounds().get(each) for each in (*BELOW, *ABOVE)})
        better = known[name].higher_is_better
        for wrong, right in zip(*((ABOVE, BELOW) if better else (BELOW, ABOVE)), strict=True):
            if wrong in limit.bounds():
                raise ValueError(
                    f"{name}.{wrong}: of {name} {'more' if better else 'less'} is better, so give {right} or ratio"
                )
    return Envelope(limits=limits, slices=slices)


def _check_shares(name: str, bounds: Mapping[str, float | None]) -> None:
    """ValueError where a limit in per cent, of a figure between 0 and 1, could never fail or never be met."""
    for bound, value in bounds.items():
        changes = bound in ("drop", "rise")
        if value is not None and (value > 1.0 or changes and value == 1.0):
            percent = f": {value / 100:g} is {value:g} point{'s' * (value != 1.0)}" if changes else f": {value / 100:g}"
            most = "less than 1" if changes else "at most 1"
            raise ValueError(
                f"{name}.{bound} is {value:g}, but must be {most}, as shares are{percent if value <= 100 else ''}"
            )


def read(path: Path) -> Any:
    """What a YAML file says: the limits, or `envelope: {...}`. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give a YAML file with limits, as accuracy: {{drop: 0.01}}")
    content = read_yaml(path)
    if isinstance(content, Mapping) and set(content) == {"envelope"}:
        content = content["envelope"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a mapping of limits, as accuracy: {{drop: 0.01}}")
    return content


def _limit(name: str, bounds: Any, model: type[AnyLimit]) -> AnyLimit:
    if not isinstance(bounds, Mapping):
        raise ValueError(f"{name} is {bounds!r}, but must be a mapping of bounds, as {{{', '.join(BOUNDS)}}}")
    try:
        return model.model_validate(dict(bounds))
    except ValidationError as error:
        raise ValueError(invalid(error, model, within=name)) from None


def merged(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """The limits of both; where both give a bound, that of the second."""
    a, b = nested(first), nested(second)
    both = {name: {**a[name], **b[name]} for name in a if isinstance(a[name], dict) and isinstance(b.get(name), dict)}
    return a | b | both


def nested(value: Mapping[Any, Any]) -> dict[str, Any]:
    """The same with dotted keys as mappings. ValueError where a key is there twice."""
    made: dict[str, Any] = {}
    for given, content in value.items():
        name, _, bound = str(given).partition(".")
        new = {bound: content} if bound else content
        if name in made:
            if not (isinstance(new, Mapping) and isinstance(made[name], Mapping)) or set(new) & set(made[name]):
                raise ValueError(f"{given} is given twice: give it once")
            new = {**made[name], **new}
        made[name] = dict(new) if isinstance(new, Mapping) else new
    return made
