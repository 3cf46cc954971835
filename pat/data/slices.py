"""Slices of the evaluation data, as a column of the rows names them: `data.slice_column`.

Each slice is made into samples by itself, so that every sample, even a block of text or packed rows, has one slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from pat.common.text import quoted
from pat.data.rows import SLICE

MOST = 100  # values: a column with more is probably a name of each row


def rows_of(rows: Dataset, column: str) -> dict[str, np.ndarray | None]:
    """The numbers of the rows of each slice, by its name, sorted by that. Raises ValueError for too many slices."""
    feature, cells = rows.features[SLICE], rows.with_format("arrow")[:][SLICE]
    values = pc.unique(cells)  # pyright: ignore
    if len(values) > MOST:
        first, second = (quoted(str(each)) for each in values[:2].to_pylist())
        raise ValueError(
            f"data.slice_column='{column}' has {len(values):,} values in the evaluation data, {first} and {second} "
            f"among them: name a column that groups rows, of at most {MOST} values"
        )
    which = pc.index_in(cells, value_set=values).to_numpy()  # pyright: ignore
    named = feature.int2str if isinstance(feature, ClassLabel) else str
    names = [str(named(each)) for each in values.to_pylist()]
    return {name: np.flatnonzero(which == names.index(name)) for name in sorted(names)}


def of_samples(counts: Sequence[tuple[str, int]], column: str) -> list[tuple[str, ...]]:
    """DIMENSION=VALUE of each sample; counts: (value, its samples) of each slice, in the samples' order."""
    return [(f"{column}={value}",) for value, samples in counts for _ in range(samples)]
