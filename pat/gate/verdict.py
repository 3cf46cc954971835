"""From what was measured to a verdict: a check for each bound of the envelope."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pat.common.files import finite
from pat.envelope import judge
from pat.envelope.figures import MODEL, PROFILE, SAMPLES, figures
from pat.envelope.judge import Check, Evidence, Quantity
from pat.envelope.spec import SLICES, Envelope, Limit
from pat.evaluation.measures import Measure, Measured, difference, estimate, ratio
from pat.evaluation.prompts import REFERENCE
from pat.gate.measure import Facts, check_measured
from pat.gate.profile import Profile
from pat.statistics.estimates import Estimate, Places


@dataclass(frozen=True)
class Verdict:
    """Whether the variant is inside, and by which checks."""

    passed: bool
    checks: list[Check]
    variant: dict[str, Any]  # folder, weights_sha256, and step where the folder says it
    baseline: dict[str, Any] | None
    envelope: dict[str, Any]
    data: list[str]  # what it was measured on
    confidence: float
    confident: bool  # whether whole intervals had to be inside
    seconds: float
    left_out: dict[str, int] = field(default_factory=dict)  # slices too small to be judged, and their samples

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return finite(asdict(self))


@dataclass(frozen=True)
class Gate:
    """How limits are judged."""

    envelope: Envelope
    profile: Profile | None
    confidence: float = 0.95
    confident: bool = False
    seed: int = 0

    def checks(self, variant: Facts, baseline: Facts | None) -> list[Check]:
        """Every bound, in the envelope's order, then those of slices. Raises ValueError for what is not measured."""
        given = [*variant.sources, *([] if self.profile is None else [PROFILE])]
        check_measured(self.envelope, given, baseline is not None)
        if baseline is not None:
            _check_same(variant, baseline)
            _check_tokens(self.envelope, variant, baseline)
        for facts in filter(None, (variant, baseline)):
            if self.profile is not None and self.profile.has(facts.folder):
                self.profile.check_weights(facts.folder, facts.weights_sha256)
        made: list[Check] = []
        for name, limit in self.envelope.limits.items():
            known = self._evidence(name, limit, variant, baseline)
            made += judge.judge(name, limit, known, figures()[name].higher_is_better, self.confident)
        if self.envelope.slices is not None:
            made += self._slices(variant, baseline)
        return made

    def left_out(self, variant: Facts) -> dict[str, int]:
        """The slices that the limits are meant for, and that have fewer samples or prompts with a limited figure than
        `slices.least`: a prompt without checks has none of `passed`."""
        slices, found = self.envelope.slices, dict[str, int]()
        if slices is None:
            return found
        for measured in variant.sources.values():
            mains = [measured.measures[name] for name in measured.main]
            limited = [each for each in mains if slices.of(each.higher_is_better) is not None]
            for name, numbers in measured.slices.items():
                sizes = [each.places(numbers).size for each in limited]
                few = [size for size in sizes if 0 < size < slices.least] or ([] if any(sizes) else [0])
                if slices.judges(name) and few:
                    found[name] = min(few)
        return found

    def _evidence(self, name: str, limit: Limit, variant: Facts, baseline: Facts | None) -> Evidence:
        sources = figures()[name].sources
        if MODEL in sources:
            return _of_model(name, variant, baseline)
        if PROFILE in sources:
            assert self.profile is not None
            beside = baseline is not None and (limit.relative() or self.profile.has(baseline.folder))
            against = baseline.folder if baseline is not None and beside else None
            return self.profile.evidence(name, variant.folder, against, self.confidence)
        source = next(each for each in sources if each in variant.sources)
        of_variant = _measure(name, variant.sources[source])
        of_baseline = None if baseline is None else _measure(name, baseline.sources[source])
        return self._paired(of_variant, of_baseline, of_variant.places(), limit.bounds())

    def _paired(self, v: Measure, b: Measure | None, places: Places, bounds: Collection[str]) -> Evidence:
        """Only the quantities that the bounds need: resampling takes a while."""
        how = (places, self.confidence, self.seed)
        measured = _quantity(estimate(v, *how)) if {"min", "max"} & set(bounds) else Quantity(v.of(places))
        of_places = v.units_at(places)
        units = None if of_places is None else np.unique(of_places).size
        if b is None:
            return Evidence(measured, n=places.size, units=units)
        return Evidence(
            measured,
            b.of(places),
            _quantity(difference(b, v, *how)) if {"drop", "rise"} & set(bounds) else None,
            _quantity(ratio(b, v, *how)) if "ratio" in bounds else None,
            places.size,
            units,
        )

    def _slices(self, variant: Facts, baseline: Facts | None) -> Iterator[Check]:
        """Each slice of what was asked. ValueError where there is none, or a bound fits no figure."""
        slices = self.envelope.slices
        assert slices is not None
        judged, left = False, set(slices.bounds())
        slices.check(name for measured in variant.sources.values() for name in measured.slices)
        for source, measured in variant.sources.items():
            for name in measured.main:
                v = measured.measures[name]
                b = None if baseline is None else _measure(name, baseline.sources[source])
                limit = slices.of(v.higher_is_better)
                if limit is None:
                    continue
                left -= set(limit.bounds())
                for slice_, numbers in measured.slices.items():
                    places = v.places(numbers)
                    if places.size >= slices.least and slices.judges(slice_):
                        judged = True
                        known = self._paired(v, b, places, limit.bounds())
                        named = f"{name}[{slice_}]"
                        yield from judge.judge(named, limit, known, v.higher_is_better, self.confident, of_slice=True)
        main = ", ".join(name for measured in variant.sources.values() for name in measured.main)
        if left:
            raise ValueError(f"slices.{sorted(left)[0]} fits no figure of slices, which are {main}: see docs/gate.md")
        if not judged:
            raise ValueError(
                f"slices are limited, but none has {slices.least} or more samples or prompts: give a mix with slices, "
                "or a smaller slices.least"
            )


def said_of(facts: Facts) -> dict[str, Any]:
    """How the model is named in a verdict."""
    step = {} if facts.step is None else {"step": facts.step}
    return {"folder": str(facts.folder), "weights_sha256": facts.weights_sha256, **step}


def _of_model(name: str, variant: Facts, baseline: Facts | None) -> Evidence:
    value = getattr(variant.size, name)
    if value is None:
        raise ValueError(f"{name} is limited, but {variant.folder} does not record it: give a run or an export")
    if baseline is None:
        return judge.evidence(float(value))
    return judge.evidence(float(value), float(getattr(baseline.size, name) or 0.0))  # not said: nothing is pruned


def _measure(name: str, measured: Measured) -> Measure:
    if name not in measured.measures:
        raise ValueError(
            f"{name} is limited, but {measured.data} gives {', '.join(measured.measures)}: limit one of these, or "
            "measure on other data"
        )
    return measured.measures[name]


def _check_same(variant: Facts, baseline: Facts) -> None:
    """ValueError where both were asked different things."""
    if SAMPLES in variant.sources and variant.tokenizer != baseline.tokenizer:
        raise ValueError(
            f"{variant.folder} and {baseline.folder} have different tokenizers, so a recipe's samples are not the same "
            "for both: give --mix, whose prompts are texts"
        )
    for source, measured in variant.sources.items():
        for name, measure in measured.measures.items():
            other = baseline.sources[source].measures.get(name)
            if other is not None and not np.array_equal(other.items, measure.items):
                raise ValueError(
                    f"{name} was measured on other samples in {variant.folder} than in {baseline.folder}: give "
                    "data.eval or --mix, on which both are measured"
                )


def _check_tokens(envelope: Envelope, variant: Facts, baseline: Facts) -> None:
    """ValueError for a limit that compares losses a token of different tokens."""
    if variant.tokenizer == baseline.tokenizer:
        return
    limits = {REFERENCE: envelope.limits.get(REFERENCE)}
    if envelope.slices is not None and any(REFERENCE in measured.main for measured in variant.sources.values()):
        limits[SLICES] = envelope.slices.of(higher_is_better=False)
    for name, limit in limits.items():
        bound = next((bound for bound in ("rise", "ratio") if limit is not None and bound in limit.bounds()), None)
        if bound is not None:
            raise ValueError(
                f"{name}.{bound} compares {REFERENCE}, which is nats a token, and {variant.folder} and "
                f"{baseline.folder} have different tokenizers: give {name}.max, or limit what passed "
                f"({'slices.drop' if name == SLICES else 'passed.drop'})"
            )


def _quantity(found: Estimate) -> Quantity:
    return Quantity(found.value, found.low, found.high)
