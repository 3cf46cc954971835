"""Rows by their place in the data, for errors, and which of them are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from pat.tasks.base import Encoder

SLICE = "slice"  # the column of data.slice_column, as `columns.select_columns` names it
TRIED = 20  # rows after a failing first one: if they fail as well, the setting is wrong and not the row


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """(rows,) bool: a row is held out when the hash of its content is below `fraction` of all hashes; label and slice
    do not belong to the content.

    So equal rows are on the same side, and a row stays on its side whatever the seed and whichever rows are added.
    """
    held = hashes < np.uint64(fraction * 2.0**64)
    if held.all() or not held.any():  # few rows: at least one distinct row on either side
        held = hashes == hashes.min() if not held.any() else hashes != hashes.max()
    if held.all() or not held.any():
        raise ValueError(f"All {len(hashes)} rows of data.train are equal, so none can be held out: give data.eval.")
    return held


def content_hashes(rows: Dataset) -> np.ndarray:
    """(rows,) uint64: equal for rows that are equal in everything but the label and the slice."""
    columns = [name for name in rows.column_names if name not in ("label", SLICE)]
    hashes = np.empty(len(rows), dtype=np.uint64)
    done = 0
    batch: Any
    for batch in rows.select_columns(columns).iter(batch_size=1000):
        for values in zip(*(batch[name] for name in columns), strict=True):
            hashes[done] = int(hash_of(values)[:16], 16)
            done += 1
    return hashes


def blank(rows: Dataset) -> np.ndarray:
    """(rows,) bool: rows of nothing but an empty text, such as the lines between the paragraphs of a file."""
    if [name for name in rows.column_names if name != SLICE] != ["text"]:
        return np.zeros(len(rows), dtype=bool)
    texts: Any = rows.with_format("arrow")[:]["text"]
    return pc.equal(pc.utf8_trim_whitespace(texts), "").to_numpy()  # pyright: ignore


def hash_of(*values: Any) -> str:
    """128 bits of plain values, and of dates, as hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


def encoded(
    encoder: Encoder, batch: Mapping[str, list[Any]], fresh: Callable[[], Encoder], place: Callable[[int], str]
) -> dict[str, list[Any]]:
    """`encoder(batch)`; a ValueError that a row of it causes begins with the row's place.

    `fresh` makes an encoder that has seen nothing; `place` says where a row of the batch is.
    """
    try:
        return encoder(batch)
    except ValueError as error:
        failing = _first_failing(batch, fresh)
        if failing is None:
            raise
        raise ValueError(f"{place(failing)}: {error}") from error


def _first_failing(batch: Mapping[str, list[Any]], fresh: Callable[[], Encoder]) -> int | None:
    """The first row that fails alone; None where none does, or all do. An encoder may take a second to make."""

    def fails(begin: int, end: int) -> bool:
        try:
            fresh()({name: values[begin:end] for name, values in batch.items()})
        except ValueError:
            return True
        return False

    count = len(next(iter(batch.values())))
    first, end = 0, count
    while end - first > 1:  # none before `first` fails
        middle = (first + end) // 2
        first, end = (first, middle) if fails(first, middle) else (middle, end)
    if not fails(first, first + 1):
        return None
    if first == 0 and count > 1 and all(fails(row, row + 1) for row in range(1, min(count, TRIED))):
        return None
    return first
