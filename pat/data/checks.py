"""What is strange about a run's data: an error where nothing could be learned from it, otherwise a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from pat.common.text import few
from pat.data.prepare import PreparedData
from pat.tasks.base import IGNORED, Task

FEW_ROWS = 20  # with fewer rows, one label in all of them proves nothing
ROWS_PER_LABEL = 5  # on average; below it, most labels are hardly seen
DOMINANT = 0.9  # share of one label from which accuracy says little
MISSING = ("nan", "na", "n/a", "null", "none", "<na>")  # as tables write that there is no value


def data_warnings(prepared: PreparedData, task: Task) -> list[str]:
    """A sentence for everything that looks like a mistake. ValueError where training would be pointless."""
    if prepared.label_names is not None:
        _refuse(prepared, prepared.label_names, task)
        counted = _words(prepared, prepared.label_names) if task.by_word else _counts(prepared, prepared.label_names)
        sentences = [*_names(prepared.label_names), *counted, *both_sides(prepared)]
    else:
        _refuse_targets(prepared)
        sentences = [*both_sides(prepared)]
    return sentences


def both_sides(prepared: PreparedData, trained: bool = True) -> Iterator[str]:
    """A sentence where evaluation rows are in the training data; `trained`: that is what the model has seen."""
    twice, rows = prepared.info.get("eval_rows_in_train", 0), prepared.info["eval_rows"]
    if twice:
        which = f"all {rows:,}" if twice == rows else f"{twice:,} of the {rows:,}"
        of = "the training data:" if trained else "data.train: if the model was trained on these,"
        yield f"{which} evaluation rows have texts of {of} the metrics count what was memorised"


def labels_of(samples: Dataset) -> np.ndarray:
    """(n,) the labels as numbers, of all samples or of all words; none where the samples have none."""
    if "label" not in samples.column_names:
        return np.empty(0)
    column: Any = samples.select_columns("label").with_format("arrow")[:]["label"]
    if not pa.types.is_nested(column.type):
        return column.to_numpy()
    of_tokens = pc.list_flatten(column).to_numpy()  # pyright: ignore
    return of_tokens[of_tokens != IGNORED]


def label_counts(samples: Dataset, count: int) -> np.ndarray:
    """(count,) int64: samples of each label, or words."""
    return np.bincount(labels_of(samples), minlength=count)


def label_shares(prepared: PreparedData) -> list[float]:
    """How often each label is seen in an epoch; empty without classes."""
    count = len(prepared.label_names or [])
    if not count or prepared.mixture is None:
        return label_counts(prepared.train, count).tolist() if count else []
    shares, offset = np.zeros(count), 0
    for size, draws in zip(prepared.mixture.sizes, prepared.mixture.draws, strict=True):
        part = prepared.train.select(range(offset, offset + size))
        shares += label_counts(part, count) * draws / size
        offset += size
    return shares.tolist()


def _refuse(prepared: PreparedData, names: list[str], task: Task) -> None:
    counts, rows = label_counts(prepared.train, len(names)), _rows(prepared)
    if (counts > 0).sum() == 1:
        raise ValueError(
            f"All {counts.sum():,} {'words of the ' if task.by_word else ''}training samples have the label "
            f"'{names[counts.argmax()]}', so there is nothing to learn: name another data.label_column, or add rows "
            "with other labels."
        )
    if getattr(task, "num_labels", None) is None and rows >= FEW_ROWS and 2 * len(names) > rows:
        raise ValueError(
            f"The training data has {len(names)} labels in {rows} rows ({few(names)}), so they are texts or ids "
            "rather than classes: name another data.label_column, or take task=regression for numbers."
        )


def _names(names: list[str]) -> Iterator[str]:
    """Labels with surrounding spaces, and labels that differ only in spaces or case."""
    spaced = [name for name in names if name != name.strip()]
    if spaced:
        yield f"labels with spaces around them: {few(spaced)}"
    missing = [name for name in names if name.strip().casefold() in MISSING]
    if missing:
        yield f"the label {few(missing)} looks like a missing value, but is learned: leave such rows out"
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.strip().casefold(), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            yield f"{few(group)} are different labels, but differ in case or spaces only: write them alike"


def _counts(prepared: PreparedData, names: list[str]) -> Iterator[str]:
    train, held = (label_counts(samples, len(names)) for samples in (prepared.train, prepared.eval))
    if _rows(prepared) < ROWS_PER_LABEL * len(names):
        yield f"{len(names)} labels in {_rows(prepared):,} rows are hardly {ROWS_PER_LABEL} rows a label"
    elif once := [name for name, count in zip(names, train, strict=True) if count == 1]:
        each = "the label" if len(once) == 1 else "each of the labels"
        yield f"only 1 training sample has {each} {few(once)}: correct the label if it is misspelt"
    unseen = [name for name, count in zip(names, train, strict=True) if not count]
    if unseen:
        yield f"no training sample has the label {few(unseen)}"
    if train.max() >= DOMINANT * train.sum():
        yield (
            f"{train.max() / train.sum():.1%} of the training samples have the label '{names[train.argmax()]}', so a "
            "constant answer is that accurate: look at macro_f1, or set task.class_weights=balanced"
        )
    if (held > 0).sum() == 1:
        yield f"all {held.sum():,} evaluation samples have the label '{names[held.argmax()]}'"


def _words(prepared: PreparedData, names: list[str]) -> Iterator[str]:
    """Where labels of words are O for the most part, that is how texts are."""
    train = label_counts(prepared.train, len(names))
    if once := [name for name, count in zip(names, train, strict=True) if count <= 1]:
        each = "the label" if len(once) == 1 else "each of the labels"
        yield f"at most 1 word of the training samples has {each} {few(once)}: correct the label if it is misspelt"


def _refuse_targets(prepared: PreparedData) -> None:
    """ValueError for targets that no regression can learn."""
    if "label" in prepared.train.column_names:
        values: Any = prepared.train.with_format("numpy", columns=["label"])["label"][:]
        if values.min() == values.max():
            raise ValueError(
                f"All {len(values):,} training samples have the label {values[0]:g}, so there is nothing to learn: "
                "name another data.label_column."
            )


def _rows(prepared: PreparedData) -> int:
    """The rows in which labels were counted, including held-out evaluation rows and those beyond max_train_samples."""
    info = prepared.info
    if "labelled_rows" in info:  # else the cache is of an earlier version
        return info["labelled_rows"]
    return info["train_rows"] + (0 if "eval_rows_in_train" in info else info["eval_rows"])
