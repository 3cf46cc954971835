"""Labels that name classes: what a column holds as words, the classes in it, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Value

from pat.common.text import few, quoted, short

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

MANY = 1_000  # classes; more are rather texts or ids
WORDS = ("string", "large_string")  # types of a column


def in_words(rows: dict[str, Dataset], num_labels: int | None) -> dict[str, Dataset]:
    """Labels are words in every split where the classes of training are: each file may type its labels otherwise.

    Whole numbers that do not count from 0, as stars from 1 to 5, are the names of their classes.
    """
    if _are_names(rows["train"], num_labels):
        rows = rows | {"train": _worded(rows["train"])}
    kinds = {split: part.features["label"] for split, part in rows.items()}
    train = kinds["train"]
    if isinstance(train, ClassLabel):  # numbers are indices, but another ClassLabel may count in another order
        by_number = all(map(_is_whole, train.names)) and train.names != [str(i) for i in range(len(train.names))]
        others = [s for s, kind in kinds.items() if _counts_otherwise(kind, train, by_number)]
    else:
        others = [s for s, kind in kinds.items() if kind.dtype not in WORDS] if train.dtype in WORDS else []
    return rows | {split: _worded(rows[split]) for split in others}


def classes_in(train: Dataset, num_labels: int | None) -> list[str]:
    """The classes: a ClassLabel's own names, words in sorted order (numbers by size), or the numbers 0..n-1; with names
    for those that only `num_labels` counts. Raises ValueError."""
    feature = train.features["label"]
    if getattr(feature, "names", None):
        names = list(feature.names)
    else:
        names = _counted(train.unique("label"), num_labels)
    if num_labels is not None and len(names) > num_labels:
        raise ValueError(
            f"task.num_labels={num_labels}, but the training data has {len(names)}: {in_order(names)}; "
            "null takes as many as there are."
        )
    free = (name for name in map(str, count(len(names))) if name not in names)
    return names + list(islice(free, max(0, (num_labels or 0) - len(names))))


def set_classes(config: PretrainedConfig, names: Sequence[str]) -> bool:
    """Give a head one output a class; whether there are names."""
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    return bool(names)


def number(numbers: Mapping[str, int], label: Any) -> int:
    """A label's place among the classes."""
    found = numbers.get(label) if isinstance(label, str) else label
    if not isinstance(found, int) or not 0 <= found < len(numbers):
        known, no_class = in_order(list(numbers)), len(numbers) > MANY or short(str(label)) != str(label)
        raise ValueError(
            f"The label {quoted(label)} is not one of the training data's ({known}): leave such rows out, or train on "
            "some." + " They look like texts or ids rather than classes: is data.label_column right?" * no_class
        )
    return int(found)


def in_order(labels: Sequence[Any]) -> str:
    """The first of them, sorted, for a sentence."""
    return few(sorted(labels, key=str))


def _are_names(train: Dataset, num_labels: int | None) -> bool:
    """Whether the labels are whole numbers, but neither indices nor ids."""
    if isinstance(train.features["label"], ClassLabel):
        return False
    labels = train.unique("label")
    whole = all(isinstance(value, int) for value in labels)
    many = 2 * len(labels) > len(train)  # more likely an id than a label
    return whole and not many and num_labels in (None, len(labels)) and set(labels) != set(range(len(labels)))


def _counts_otherwise(kind: Any, train: ClassLabel, by_number: bool) -> bool:
    """Whether a column's numbers are no indices of training's classes; by_number: numbers name these, as stars."""
    if isinstance(kind, ClassLabel):
        return kind.names != train.names
    return by_number and kind.dtype not in WORDS


def _counted(labels: list[Any], num_labels: int | None) -> list[str]:
    if all(isinstance(value, str) for value in labels):
        return sorted(labels, key=int if all(_is_whole(value) for value in labels) else None)
    numbers = {int(value) for value in labels if isinstance(value, int)}  # bool too
    expected = range(num_labels or len(numbers))
    whole = len(numbers) == len(labels)
    if not whole or not numbers <= set(expected):
        raise ValueError(
            f"The labels in the training data are {in_order(labels)}, but must be strings, or whole numbers "
            f"0..{len(expected) - 1 if numbers else 'n-1'}: map them to those (a missing value makes a column of "
            "whole numbers one of 1.0, 2.0), or name another data.label_column"
            + (", or set task.num_labels=null to take them as they are" if whole and num_labels else "")
            + ("; where they are amounts, take task=regression." if _are_amounts(labels) else ".")
        )
    return [str(i) for i in expected]


def _worded(rows: Dataset) -> Dataset:
    """The rows with their labels as words: a ClassLabel's names, other values as they are written."""
    feature = rows.features["label"]
    if not isinstance(feature, ClassLabel):
        return rows.cast_column("label", Value("string"))
    names = dict(enumerate(feature.names))
    words = [names.get(number, str(number)) for number in rows["label"]]  # -1: not labelled
    return rows.remove_columns("label").add_column("label", words)  # pyright: ignore


def _are_amounts(labels: Sequence[Any]) -> bool:
    """Whether some are between whole numbers."""
    return any(isinstance(value, float) and math.isfinite(value) and value % 1 for value in labels)


def _is_whole(word: str) -> bool:
    return word.removeprefix("-").isascii() and word.removeprefix("-").isdigit()
