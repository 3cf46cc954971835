"""What torch allocates, by its own profiler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak(work: Callable[[], object], folder: Path) -> int:
    """Bytes that torch held at most of what it has allocated in a call."""
    return max(_held(work, folder), default=0)


def kept(work: Callable[[], object], folder: Path) -> int:
    """Bytes of what a call has allocated that its result keeps."""
    return ([0, *_held(work, folder)])[-1]


def _held(work: Callable[[], object], folder: Path) -> Iterator[int]:
    """Bytes of what a call has allocated, after each allocation and each release; its result is kept."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    trace = folder / "trace.json"
    seen.export_chrome_trace(str(trace))
    events = [each["args"] for each in json.loads(trace.read_text())["traceEvents"] if each["name"] == "[memory]"]
    live: dict[int, int] = {}
    held = 0
    for event in sorted(events, key=lambda each: each["Ev Idx"]):
        address, size = event["Addr"], event["Bytes"]
        if size > 0:
            live[address] = size
        elif live.pop(address, None) is None:
            continue  # from before: an earlier profile knew something at this address, and this is that one's size
        held += size
        yield held
    del result
