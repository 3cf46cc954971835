"""Words and numbers as people read them."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

# Old names of keys, which scripts and frozen configs of older versions hold.
RENAMED = {
    "checkpoint_every_min": "checkpoint_every_minutes",
    "every": "select_every",
    "hard": "hard_from",
    "stock": "hf_compatible",
}
ELSEWHERE = {  # names of the same in other trainers
    "learning_rate": "lr",
    "max_steps": "num_steps",
    "batch_size": "global_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "train_batch_size": "global_batch_size",
    "max_grad_norm": "gradient_clipping",
    "max_seq_length": "max_length",
    "block_size": "max_length",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "lr_schedule",
    "save_steps": "checkpoint_every",
    "eval_steps": "eval_every",
    "logging_steps": "log_every",
}


def did_you_mean(given: str, allowed: Sequence[str]) -> str:
    """`; did you mean NAME?`, or that it has a new name, or nothing where no name is close."""
    if RENAMED.get(given) in allowed:
        return f"; {given} is called {RENAMED[given]} now"
    if ELSEWHERE.get(given) in allowed:
        return f"; did you mean {ELSEWHERE[given]}?"
    close = difflib.get_close_matches(given, allowed, 1)
    return f"; did you mean {close[0]}?" if close else ""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03`, without the fraction of a second."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def file_size(n: float) -> str:
    """Bytes of files in decimal units, as disks and hubs count them; memory is in `size_in_words`."""
    for unit in ("B", "kB", "MB"):
        if abs(n) < 1000:
            return f"{n:.4g} {unit}"
        n /= 1000
    return f"{n:.4g} GB"


def size_in_words(n: float) -> str:
    """Bytes with the binary unit that suits them, as memory is counted."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            break
        n /= 1024
    return f"{n:.1f} {unit}"


def span(low: float | None, high: float | None) -> str:
    """The interval of a difference, with signs; a dash where there is none."""
    return "-" if low is None or high is None else f"{low:+z.4g} to {high:+z.4g}"


def short(text: str, most: int = 40) -> str:
    """A name as a sentence has room for it."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def quoted(value: Any) -> str:
    """A value as Python writes it, texts cut."""
    return repr(short(value) if isinstance(value, str) else value)


def few(values: Sequence[Any], written: Callable[[Any], str] = quoted, most: int = 8) -> str:
    """The first of them, and how many there are."""
    shown = ", ".join(map(written, values[:most]))
    return shown if len(values) <= most else f"{shown}, ... ({len(values)})"


def column_names(names: Sequence[str]) -> str:
    """The names of columns; in quotation marks, and why, where white space around one would not be seen."""
    if all(name == name.strip() for name in names):
        return ", ".join(map(short, names))
    return f"{', '.join(map(quoted, names))} (white space is a part of these names: take it out)"


def header_is_first(example: str = "") -> str:
    """What to do where a table has no header, so that its first row was taken for one."""
    return (
        " The first line is read as the header: where there is none, put a line with the names of the columns first"
        + (f", such as {example}." if example else ".")
    )


def two_of_a_name(header: Sequence[str]) -> str:
    """What to say, behind its path, of a table with two columns of one name; empty where each has its own."""
    twice = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
    return "" if twice is None else f" has two columns '{short(twice)}': rename one.{header_is_first()}"


def plain(text: str, most: int | None = None) -> str:
    """Without control characters, which could drive a terminal; perhaps cut."""
    kept = "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\ufffd" for c in text)
    return kept if most is None or len(kept) <= most else f"{kept[:most]} ... ({len(kept) - most} more characters)"
