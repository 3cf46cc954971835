"""Tests of two parts of the traffic: lengths, slices and places of prompts; and all logged columns of outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pat.common.text import did_you_mean
from pat.monitor.result import OUTPUTS, PROMPTS, Check
from pat.monitor.traffic import Part
from pat.prompts.mix import Prompt
from pat.statistics import drift
from pat.statistics.paired import RESAMPLES, Numbers

KINDS, SHARE, LABEL = 20, 0.2, 60  # texts of kinds: so few, or so few of the rows, of so many characters
POINTS = 300  # prompts of a part whose embeddings are compared: the kernel takes their number squared
NONE = "none"  # the value of a prompt without a slice of the dimension


@dataclass(frozen=True)
class Places:
    """The embeddings of the prompts of a part, in a model."""

    lengths: Numbers  # (n,) tokens
    means: Numbers  # (n, d): of a prompt the mean of its tokens' input embeddings


def of_prompts(
    reference: Part,
    now: Part,
    places: tuple[Places, Places],  # of the reference, of now
    dimensions: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Iterator[Check]:
    """Lengths, the shares of slices in each dimension, and embeddings. ValueError for a dimension that one part
    lacks."""
    then_at, now_at = places
    w = reference.weights
    found = drift.of_numbers(then_at.lengths, now_at.lengths, w)
    yield Check(PROMPTS, "tokens", found, _quantiles(then_at.lengths, now_at.lengths, w))
    for dimension in dimensions:
        yield _slices(reference, now, dimension)
    rng = np.random.default_rng(seed)
    a, b = _some(len(then_at.means), rng), _some(len(now_at.means), rng)
    weights = None if w is None else w[a]
    yield Check(PROMPTS, "embeddings", drift.of_points(then_at.means[a], now_at.means[b], weights, resamples, seed))


def of_outputs(then: Part, now: Part, names: Sequence[str]) -> Iterator[Check]:
    """Each column that has values in both: shares of yes and no, of a few texts or of single words, else distributions
    of numbers; of other texts the words are counted."""
    for position, name in enumerate(names):
        before, after = then.known(position), now.known(position)
        if not (before and after):
            continue
        if _are_kinds([*before, *after]):
            yield _kinds(name, Counter(map(str, before)), Counter(map(str, after)))
            continue
        a, b = (np.array([*map(_number, side)], float) for side in (before, after))
        if not isinstance(before[0], str) and np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
            figures = {"share": (float(a.mean()), float(b.mean()))}
            yield Check(OUTPUTS, name, drift.of_outcomes(a, b), figures, share=True)
        else:
            yield Check(OUTPUTS, name, drift.of_numbers(a, b), _quantiles(a, b))


def _number(value: float | str) -> float:
    return len(value.split()) if isinstance(value, str) else value


def _are_kinds(values: Sequence[float | str]) -> bool:
    """Whether they are a few short texts, as labels are, or short single words, however many."""
    kinds, most = {value for value in values if isinstance(value, str)}, max(KINDS, SHARE * len(values))
    few = len(kinds) <= most or all(len(kind.split()) <= 1 for kind in kinds)
    return bool(kinds) and few and all(len(kind) <= LABEL for kind in kinds)


def _kinds(name: str, then: Mapping[str, int], now: Mapping[str, int]) -> Check:
    totals = sum(then.values()), sum(now.values())
    found = drift.of_shares(then, totals[0], now)
    names = dict.fromkeys((*then, *now))
    figures = {each: (then.get(each, 0) / totals[0], now.get(each, 0) / totals[1]) for each in names}
    return Check(OUTPUTS, name, found, figures, share=True)


def check_dimensions(reference: Part, dimensions: Sequence[str]) -> None:
    """ValueError for a slice that the reference does not have: nothing can be compared with it."""
    known = list(dict.fromkeys(name for prompt in reference.prompts for name in prompt.slices))
    for dimension in dimensions:
        if dimension not in known:
            has = f"has slices of {', '.join(known)}" if known else "has no slices"
            raise ValueError(
                f"{reference.name} {has}, so shares of {dimension} cannot be compared: leave it out, or sample a mix "
                f"with it by pat prompts from-logs{did_you_mean(dimension, known)}"
            )


def _slices(reference: Part, now: Part, dimension: str) -> Check:
    def of(prompt: Prompt) -> str:
        return prompt.slices.get(dimension, NONE)

    weights = np.ones(len(reference.rows)) if reference.weights is None else reference.weights
    then: dict[str, float] = {}
    for prompt, weight in zip(reference.prompts, weights, strict=True):
        then[of(prompt)] = then.get(of(prompt), 0.0) + float(weight)
    counted = Counter(map(of, now.prompts))
    found = drift.of_shares(then, drift.effective(weights), counted)
    whole, total = sum(then.values()), sum(counted.values())
    names = dict.fromkeys((*then, *counted))
    figures = {name: (then.get(name, 0.0) / whole, counted[name] / total) for name in names}
    return Check(PROMPTS, f"slices of {dimension}", found, figures, share=True)


def _some(n: int, rng: np.random.Generator) -> np.ndarray:
    """At most POINTS places, drawn with equal probability."""
    return rng.permutation(n)[:POINTS]


def _quantiles(then: Numbers, now: Numbers, w: Numbers | None = None) -> dict[str, tuple[float, float]]:
    """The median and the 95 % quantile of both, as values that were seen."""
    both = ((then, w), (now, None))
    found = ([np.quantile(x, q, weights=weights, method="inverted_cdf") for x, weights in both] for q in (0.5, 0.95))
    return {name: (float(a), float(b)) for name, (a, b) in zip(("median", "95 %"), found, strict=True)}
