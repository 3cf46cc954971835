"""The columns of a task among those of the rows: found, checked, and named as the task names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from pat.common.text import column_names
from pat.data import delimited
from pat.data.rows import SLICE
from pat.data.sources import files, without_rows
from pat.schema import DataConfig
from pat.tasks.formats import CONVERSATIONS

MIXED: Any = getattr(datasets, "Json", ())  # what newer versions read JSON of several types as


def select_columns(
    rows: Dataset,
    columns: Mapping[str, str],
    cfg: DataConfig,
    split: str,
    by_word: bool = False,  # whether texts and labels may be lists
) -> Dataset:
    """The rows with the task's columns under the task's names; a wrong column or none of the rows is a ValueError."""
    for name, column in columns.items():
        if column not in rows.column_names:
            raise _not_there(rows, columns, cfg, split, name)
    for name, column in columns.items():
        other = next(first for first, value in columns.items() if value == column)
        if other != name:
            raise ValueError(f"data.{other}_column and data.{name}_column are both '{column}': name two columns.")
    if len(rows) == 0:
        raise without_rows(cfg, split)
    rows = _without_views(rows.select_columns(list(dict.fromkeys(columns.values()))))
    for name, column in columns.items():
        _check_type(rows.features[column], name, column, split, by_word)
        filled = ("label", SLICE, *(("prompt", "completion") if cfg.source == "csv" else ()))  # csv has no null
        first, others = (0, -1) if name == "tools" else _empty_rows(rows, column, name in filled)
        if others >= 0:
            more = f" and in {others:,} more rows" if others else ""
            where = place_of(cfg, split, first)
            raise ValueError(f"The column '{column}' is empty in {where}{more}: remove such rows.")
    return rows.rename_columns({column: name for name, column in columns.items()})


def place_of(cfg: DataConfig, split: str, row: int) -> str:
    """Where row number `row` (from 0) of a split is, for people: file and line, or the row's number from 1."""
    if cfg.source == "csv":
        return str(delimited.place(files(cfg, split), cfg, row))
    return f"row {row + 1} of data.{split}"


def _not_there(rows: Dataset, columns: Mapping[str, str], cfg: DataConfig, split: str, name: str) -> ValueError:
    """What a column is missed for, and what the rows have instead."""
    free = [column for column in rows.column_names if column not in columns.values()]
    given = free[0] if len(free) == 1 and free[0].isidentifier() else "NAME"
    what_to_do = f" Give data.{name}_column={given}." if free and all(c == c.strip() for c in free) else ""
    if {*CONVERSATIONS, "completion"} & set(rows.column_names):
        what_to_do = " These rows are chats: take task=chat (pat prune: --task chat)."
    elif cfg.source == "csv":
        wanted = list(dict.fromkeys(columns.values()))
        path = files(cfg, split)[0]
        otherwise = delimited.separated_otherwise(rows.column_names, path, cfg)
        what_to_do = otherwise or what_to_do + delimited.without(wanted, rows.column_names, path, cfg)
    return ValueError(
        f"data.{name}_column='{columns[name]}' is not in data.{split}: the columns are "
        f"{column_names(rows.column_names)}.{what_to_do}"
    )


def _check_type(feature: Any, name: str, column: str, split: str, by_word: bool) -> None:
    """ValueError for a column whose values are not of the kind that the task reads there."""
    if isinstance(feature, MIXED) and name.startswith(("text", "label", SLICE)):
        raise ValueError(
            f"data.{name}_column='{column}' holds values of several types, as numbers beside text: write all of "
            "them as text, or name another."
        )
    listed = by_word and hasattr(feature, "feature")
    if name.startswith("text") and not _is_text(feature.feature if listed else feature):
        of_words = " (task=token_classification takes lists of words)" * hasattr(feature, "feature")
        raise ValueError(f"data.{name}_column='{column}' holds {feature}, not text: name another{of_words}.")
    if name in ("prompt", "completion") and isinstance(feature, Value) and not _is_text(feature):
        raise ValueError(
            f"The column '{column}' of data.{split} holds {feature.dtype}, not text or messages: give text (dates "
            "become times where all values of JSON are dates; csv and parquet keep them as text)."
        )
    if name == "label" and by_word and not (listed or _is_text(feature)):
        raise ValueError(
            f"data.label_column='{column}' holds one {feature.dtype if isinstance(feature, Value) else 'class'} a row, "
            "but task=token_classification reads one label for each word, as a list or a text with spaces: name "
            "another, or take task=classification."
        )
    if name in ("label", SLICE) and not (listed or isinstance(feature, Value | ClassLabel)):
        raise ValueError(f"data.{name}_column='{column}' holds {feature}, not a word or number: name another.")


def _empty_rows(rows: Dataset, column: str, is_filled: bool) -> tuple[int, int]:
    """(first row without a value, how many others there are; -1: not even the first); what must be filled may not be
    an empty text either."""
    values = rows.data.column(column)
    empty = pc.is_null(values)  # pyright: ignore
    if is_filled and _is_text(rows.features[column]):
        empty = pc.or_kleene(empty, pc.equal(values, ""))  # pyright: ignore
    return pc.index(empty, True).as_py(), pc.sum(empty).as_py() - 1  # pyright: ignore


def _without_views(rows: Dataset) -> Dataset:
    """The rows with texts of Arrow's newest type, for which it has few functions, as its first."""
    for name, feature in rows.features.items():
        if isinstance(feature, Value) and feature.dtype == "string_view":
            rows = rows.cast_column(name, Value("string"))
    return rows


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")
