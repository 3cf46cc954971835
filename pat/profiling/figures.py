"""From times to figures: percentiles, throughput, cost, and ratios to the first model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pat.profiling.measure import Numbers, Samples
from pat.profiling.plan import Plan, Work
from pat.statistics import ratio
from pat.statistics.ratio import Ratio

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
FEW = 100  # requests, below which p99 is nearly the slowest


@dataclass(frozen=True)
class Throughput:
    """The throughput at one point of the grid."""

    batch_size: int
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float  # generated; of a classifier read
    ratio: dict[str, float | None] | None  # to the first model's tokens_per_s


@dataclass(frozen=True)
class Profile:
    """One model on one backend. Times are in seconds; of a classifier only `latency` is there."""

    folder: str
    backend: str
    device: str
    latency_p50: float  # of a whole request
    latency_p95: float
    latency_p99: float
    tokens_per_s: float  # the best of the grid
    throughput: list[Throughput]
    prefill_p50: float | None = None
    prefill_p95: float | None = None
    prefill_p99: float | None = None
    time_to_first_token_p50: float | None = None
    time_to_first_token_p95: float | None = None
    time_to_first_token_p99: float | None = None
    decode_p50: float | None = None  # of a token after the first
    decode_p95: float | None = None
    decode_p99: float | None = None
    peak_memory_bytes: int | None = None  # with activations and cache; None: the backend's memory cannot be measured
    memory_bytes: int | None = None  # weights and buffers
    bytes_on_disk: int = 0
    weights_sha256: str = ""  # of the weights as they are stored, as a gate names them
    flops: int | None = None  # of the forward of one prompt of flops_tokens tokens; None: not counted
    flops_tokens: int = 0
    load_seconds: float | None = None
    cost_per_million_tokens: float | None = None
    ratio: dict[str, dict[str, float | None]] = field(default_factory=dict)  # to the first model; {} for the first

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Facts:
    """Facts about a model that need no timing."""

    folder: str
    backend: str
    device: str
    bytes_on_disk: int
    weights_sha256: str
    flops: int | None
    flops_tokens: int
    load_seconds: float | None = None
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None


def percentiles(name: str, seconds: Numbers) -> dict[str, float]:
    """{NAME_p50, NAME_p95, NAME_p99}, interpolated as numpy does it."""
    return {f"{name}_{key}": float(np.quantile(seconds, q)) for key, q in QUANTILES.items()}


def profile(
    facts: Facts,
    plan: Plan,
    samples: Samples,
    baseline: Samples | None,  # None: this is the first model
    price_per_hour: float | None,
    confidence: float,
    seed: int,
) -> Profile:
    """All figures of one model."""
    asked = samples.requests(plan.requests)
    generative = plan.requests[0].output_tokens > 0
    found: dict[str, Any] = percentiles("latency", samples.whole(asked))
    if generative:
        found |= percentiles("prefill", samples.prompt(asked)) | percentiles(
            "time_to_first_token", samples.first(asked)
        )
        gaps = samples.decode(asked)
        found |= percentiles("decode", gaps) if gaps.size else {}
    grid = [_throughput(work, samples, baseline, confidence) for work in plan.grid]
    best = max(range(len(grid)), key=lambda i: grid[i].tokens_per_s)
    ratios: dict[str, dict[str, float | None]] = {}
    if baseline is not None:
        of = _ratios(asked, generative, baseline, samples, confidence, seed)
        ratios = {name: one.plain() for name, one in of.items()}
        ratios["tokens_per_s"] = _best_ratio(plan.grid, samples, baseline, confidence).plain()
    cost = None if price_per_hour is None else price_per_hour / 3600.0 / grid[best].tokens_per_s * 1e6
    if cost is not None and ratios.get("tokens_per_s"):
        ratios["cost_per_million_tokens"] = _inverse(ratios["tokens_per_s"])
    return Profile(
        **asdict(facts),
        **found,
        tokens_per_s=grid[best].tokens_per_s,
        throughput=grid,
        cost_per_million_tokens=cost,
        ratio=ratios,
    )


def _best_ratio(grid: Sequence[Work], samples: Samples, baseline: Samples, confidence: float) -> Ratio:
    """The model's best throughput on the grid over the first model's best, with a_i, b_i those of the first and of this
    one at point i: b_j / a_i where each is best.

    The blocks of two points are not exchangeable, but at one point they are, and b_i / a_i <= b_j / a_i <= b_j / a_j:
    the interval is from the lower end at the first model's best point to the upper end at this one's.
    """
    speeds = [[_speed(work, of) for work in grid] for of in (baseline, samples)]
    i, j = (max(range(len(grid)), key=each.__getitem__) for each in speeds)
    at_i, at_j = (_speed_ratio(grid[k], samples, baseline, confidence) for k in (i, j))
    if i == j:
        return at_i
    value = speeds[1][j] / speeds[0][i]
    return Ratio(value, min(at_i.low, value), max(at_j.high, value))


def _inverse(found: Mapping[str, float | None]) -> dict[str, float | None]:
    """The ratio of a figure that falls as another rises."""
    turned = {name: 1.0 / value if value else None for name, value in found.items()}
    return {"value": turned["value"], "low": turned["high"], "high": turned["low"]}


def _ratios(
    asked: list[int], generative: bool, a: Samples, b: Samples, confidence: float, seed: int
) -> dict[str, Ratio]:
    """Ratios of paired requests, and of the percentiles of latency."""
    found = {"latency": ratio.paired(a.whole(asked), b.whole(asked), confidence)}
    if generative:
        found["prefill"] = ratio.paired(a.prompt(asked), b.prompt(asked), confidence)
        found["time_to_first_token"] = ratio.paired(a.first(asked), b.first(asked), confidence)
        longer = [k for k in asked if a.works[k].output_tokens > 1]
        if longer:
            found["decode"] = ratio.paired(a.decode_means(longer), b.decode_means(longer), confidence)
    for key, q in QUANTILES.items():
        found[f"latency_{key}"] = ratio.of_quantiles(a.whole(asked), b.whole(asked), q, confidence, seed)
    return found


def _throughput(work: Work, samples: Samples, baseline: Samples | None, confidence: float) -> Throughput:
    compared = None if baseline is None else _speed_ratio(work, samples, baseline, confidence).plain()
    return Throughput(*work.shape, _speed(work, samples), compared)


def _speed(work: Work, samples: Samples) -> float:
    """Tokens over the median time of a batch."""
    return work.tokens / float(np.median(samples.whole(samples.requests([work]))))


def _speed_ratio(work: Work, samples: Samples, baseline: Samples, confidence: float) -> Ratio:
    blocks = samples.requests([work])
    return ratio.paired(baseline.whole(blocks), samples.whole(blocks), confidence).inverse()
