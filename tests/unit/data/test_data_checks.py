"""Data that trains without an error and teaches nothing, or something else than its owner thinks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pat.data import prepare
from pat.data.checks import data_warnings
from pat.models import tokenizers
from pat.schema import DataConfig
from pat.tasks import base

TOKENIZER = tokenizers.byte_tokenizer()
Rows = list[tuple[str, Any]]


def prepared(tmp_path: Path, rows: Rows, held: Rows | None = None, task: str = "classification", **fields: Any) -> Any:
    files: dict[str, Any] = {}
    for split, some in (("train", rows), ("eval", held)):
        if some is not None:
            path = tmp_path / f"{split}.jsonl"
            path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in some))
            files[split] = str(path)
    cfg = DataConfig(source="json", max_length=16, cache_dir=str(tmp_path / "cache"), eval_fraction=0.25, **files)
    built = base.build({"name": task, **fields})
    return prepare.prepare(cfg, TOKENIZER, built), built


def texts(labels: list[Any], word: str = "text") -> Rows:
    return [(f"{word} {i}", label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    "rows, words",
    [
        (texts(["pos"] * 30), "30 training samples have the label 'pos', so there is nothing to learn"),
        (texts([7] * 30), "have the label '7'"),
        (texts([f"id {i}" for i in range(277)]), "277 labels in 277 rows"),
        (texts([f"id {i * 2 // 3}" for i in range(60)]), "40 labels in 60 rows"),
    ],
)
def test_pointless_training_is_an_error(tmp_path: Path, rows: Rows, words: str) -> None:
    held = texts([rows[0][1]] * 2, "other")
    with pytest.raises(ValueError) as error:
        data_warnings(*prepared(tmp_path, rows, held))
    assert words in str(error.value) and "data.label_column" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rows, held, words",
    [
        (texts(["pos", "neg"] * 20), texts(["pos", "neg"], "other"), []),
        (
            texts(["pos", "pos ", "neg", "Neg"] * 20),
            texts(["pos", "neg"], "other"),
            ["labels with spaces around them: 'pos '", "'pos', 'pos ' are", "'Neg', 'neg' are different labels"],
        ),
        (texts([" pos", "neg"] * 20), texts([" pos", "neg"], "other"), ["labels with spaces around them: ' pos'"]),
        (texts(["NaN", "neg"] * 20), texts(["NaN", "neg"], "other"), ["the label 'NaN' looks like a missing value"]),
        (
            texts(["pos", "neg"] * 20),
            texts(["pos", "neg"]) + texts(["pos"], "other"),
            ["2 of the 3 evaluation rows have texts of the training data"],
        ),
        (texts(["pos", "neg"] * 20), texts(["pos", "neg"]), ["all 2 evaluation rows have texts of the training data"]),
        (texts(["pos", "neg"] * 20), texts(["pos"], "other"), ["all 1 evaluation samples have the label 'pos'"]),
        (texts(["pos"] * 19 + ["neg"]), texts(["pos", "neg"], "other"), ["95.0% of the training samples have the lab"]),
        (texts([f"{i % 12}" for i in range(30)]), texts(["0", "1"], "other"), ["12 labels in 30 rows are hardly"]),
    ],
)
def test_what_looks_like_a_mistake_is_a_warning(tmp_path: Path, rows: Rows, held: Rows, words: list[str]) -> None:
    found = data_warnings(*prepared(tmp_path, rows, held))
    assert len(found) == len(words) and all(any(word in line for line in found) for word in words), found


def test_labels_that_only_num_labels_adds_are_said(tmp_path: Path) -> None:
    found = data_warnings(*prepared(tmp_path, texts([0, 1] * 20), texts([0, 1], "other"), num_labels=3))
    assert found == ["no training sample has the label '2'"]


def test_documents_on_both_sides_are_said_for_every_task(tmp_path: Path) -> None:
    rows = texts([0] * 40)
    found = data_warnings(*prepared(tmp_path, rows, rows[:3], task="causal_lm"))
    assert len(found) == 1 and found[0].startswith("all 3 evaluation rows have texts of the training data")
