"""Slices of the evaluation data, as a column of the rows names them: `data.slice_column`.

Each slice is made into samples by itself, so that every sample, even a block of text or packed rows, has one slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset

from pat.data.rows import SLICE

MOST = 100  # values: a column with more is probably a name of each row


def rows_of(rows: Dataset, column: str) -> dict[str, np.ndarray | None]:
    """The numbers of the rows of each slice, by its name, sorted by that. Raises ValueError for too many slices."""
    feature = rows.features[SLICE]
    names = [feature.int2str(each) if isinstance(feature, ClassLabel) else str(each) for each in rows[SLICE]]
    values, which = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    if len(values) > MOST:
        raise ValueError(
            f"data.slice_column='{column}' has {len(values)} values in the evaluation data, {values[0]!r} and "
            f"{values[1]!r} among them: name a column that groups rows, of at most {MOST} values"
        )
    made: dict[str, np.ndarray | None] = {}
    for number, value in enumerate(values):
        made[str(value)] = np.flatnonzero(which == number)
    return made


def of_samples(counts: Sequence[tuple[str, int]], column: str) -> list[tuple[str, ...]]:
    """DIMENSION=VALUE of each sample; counts: (value, its samples) of each slice, in the samples' order."""
    return [(f"{column}={value}",) for value, samples in counts for _ in range(samples)]
