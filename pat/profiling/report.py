"""A profile on the terminal. The names of folders are printed as they are, never as markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pat.common.text import file_size, size_in_words
from pat.profiling.figures import FEW, Profile

NAME = 32  # columns that a model's name may fill before it is folded


def blocks(profiles: Sequence[Profile], device: str, dtype: str, requests: int, confidence: float) -> Iterator[Any]:
    """The parts that rich prints, in order."""
    yield Text(f"device: {device}, in {dtype}; {requests} requests of each model, one at a time, in turn")
    yield _latencies(profiles)
    yield _ratios(profiles, confidence)
    yield _sizes(profiles)
    yield _throughput(profiles)
    if requests < FEW:
        yield Text(f"note: p99 of {requests} requests is nearly the slowest; --requests {FEW} or more says more")


def _latencies(profiles: Sequence[Profile]) -> Table:
    rows = ("latency", "prefill", "time_to_first_token", "decode")
    table = Table(box=box.SIMPLE_HEAD, title="milliseconds: p50 / p95 / p99", title_justify="left")
    table.add_column("model", overflow="fold", min_width=_width(profiles))
    table.add_column("backend")
    for name in ("request", "prefill", "first token", "each token after it"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in profiles:
        cells = [[getattr(one, f"{row}_{p}") for p in ("p50", "p95", "p99")] for row in rows]
        table.add_row(Text(one.folder), one.backend, *(_milliseconds(cell) for cell in cells))
    return table


def _ratios(profiles: Sequence[Profile], confidence: float) -> Table | Text:
    if len(profiles) < 2:
        return Text("ratios: none, only one model is measured")
    names = list(dict.fromkeys(name for one in profiles for name in one.ratio))
    title = f"ratio to {profiles[0].folder} ({profiles[0].backend}), {confidence:.0%} interval"
    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    table.add_column("figure", no_wrap=True)
    for one in profiles[1:]:
        table.add_column(Text(f"{one.folder} ({one.backend})"), justify="right", overflow="fold")
    for name in names:
        table.add_row(name, *(_ratio(one.ratio.get(name)) for one in profiles[1:]))
    return table


def _sizes(profiles: Sequence[Profile]) -> Table:
    title = "sizes (files in MB of 10^6 bytes, memory in MiB of 2^20)"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("model", overflow="fold", min_width=_width(profiles))
    table.add_column("backend")
    costs = any(one.cost_per_million_tokens is not None for one in profiles)
    columns = ("on disk", "in memory", "peak", "GFLOPs", "load s", *(["cost / 1M tokens"] if costs else []))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for one in profiles:
        cells = [
            file_size(one.bytes_on_disk),
            "-" if one.memory_bytes is None else size_in_words(one.memory_bytes),
            "-" if one.peak_memory_bytes is None else size_in_words(one.peak_memory_bytes),
            "-" if one.flops is None else f"{one.flops / 1e9:.3g} for {one.flops_tokens} tokens",
            "-" if one.load_seconds is None else f"{one.load_seconds:.2f}",
        ]
        table.add_row(Text(one.folder), one.backend, *cells, *([_cost(one)] if costs else []))
    return table


def _throughput(profiles: Sequence[Profile]) -> Table:
    several = (
        "" if len(profiles) < 2 else " (ratio of batches that ran in turn, which need not be that of these medians)"
    )
    title = f"tokens per second, over the median time of a batch{several}"
    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    table.add_column("batch size", justify="right")
    generates = any(point.output_tokens for one in profiles for point in one.throughput)
    table.add_column("prompt + output" if generates else "tokens", justify="right", no_wrap=True)
    for one in profiles:
        table.add_column(Text(f"{one.folder} ({one.backend})"), justify="right", overflow="fold")
    for points in zip(*(one.throughput for one in profiles), strict=True):
        cells = [_number(p.tokens_per_s) + ("" if p.ratio is None else f"  {_ratio(p.ratio)}") for p in points]
        first = points[0]
        length = f"{first.prompt_tokens}" + (f" + {first.output_tokens}" if generates else "")
        table.add_row(f"{first.batch_size}", length, *cells)
    return table


def _width(profiles: Sequence[Profile]) -> int:
    return min(NAME, max(len(one.folder) for one in profiles))


def _number(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"


def _milliseconds(seconds: Sequence[float | None]) -> str:
    known = [value for value in seconds if value is not None]
    return " / ".join(_number(value * 1e3) for value in known) if known else "-"


def _ratio(found: Mapping[str, float | None] | None) -> str:
    if not found or found["value"] is None:
        return "-"
    low, high = found["low"], found["high"]
    between = "no bound" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return f"{found['value']:.3f} ({between})"


def _cost(one: Profile) -> str:
    return "-" if one.cost_per_million_tokens is None else f"{one.cost_per_million_tokens:.4g}"
