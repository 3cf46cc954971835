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
        (
            texts(["pos"] * 19 + ["neg"]),
            texts(["pos", "neg"], "other"),
            ["only 1 training sample has the label 'neg'", "95.0% of the training samples have the lab"],
        ),
        (
            texts(["pos", "neg"] * 20 + ["postive"]),
            texts(["pos", "neg"], "other"),
            ["only 1 training sample has the label 'postive': correct"],
        ),
        (texts([f"{i % 12}" for i in range(30)]), texts(["0", "1"], "other"), ["12 labels in 30 rows are hardly"]),
    ],
)
def test_what_looks_like_a_mistake_is_a_warning(tmp_path: Path, rows: Rows, held: Rows, words: list[str]) -> None:
    found = data_warnings(*prepared(tmp_path, rows, held))
    assert len(found) == len(words) and all(any(word in line for line in found) for word in words), found


def test_labels_that_only_num_labels_adds_are_said(tmp_path: Path) -> None:
    found = data_warnings(*prepared(tmp_path, texts([0, 1] * 20), texts([0, 1], "other"), num_labels=3))
    assert found == ["no training sample has the label '2'"]


def test_labels_are_counted_in_all_rows_and_not_in_those_that_are_left(tmp_path: Path) -> None:
    """Fails if a quick try on a part of data with many labels is refused."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": f"l{i % 50}"}) + "\n" for i in range(600)))
    cfg = DataConfig(source="json", train=str(path), max_length=16, max_train_samples=60, cache_dir=str(tmp_path / "c"))
    built = base.build({"name": "classification"})
    made = prepare.prepare(cfg, TOKENIZER, built)
    assert made.info["labelled_rows"] == 600 and not [w for w in data_warnings(made, built) if "rows a label" in w]


def test_lines_between_paragraphs_are_no_texts_of_both_sides(tmp_path: Path) -> None:
    for split in ("train", "eval"):
        (tmp_path / f"{split}.txt").write_text("".join(f"{split} paragraph {i}\n\n" for i in range(20)))
    files: dict[str, Any] = {split: str(tmp_path / f"{split}.txt") for split in ("train", "eval")}
    built = base.build({"name": "causal_lm"})
    made = prepare.prepare(
        DataConfig(source="text", max_length=16, cache_dir=str(tmp_path / "c"), **files), TOKENIZER, built
    )
    assert made.info["eval_rows_in_train"] == 0 and not data_warnings(made, built)
    (tmp_path / "few.txt").write_text("".join(f"few paragraph {i}\n\n" for i in range(4)))
    few: dict[str, Any] = {"train": str(tmp_path / "few.txt"), "eval_fraction": 0.08}  # an empty line's hash is below
    held = prepare.prepare(
        DataConfig(source="text", max_length=8, cache_dir=str(tmp_path / "c"), **few), TOKENIZER, built
    )
    assert len(held.eval) > 0


@pytest.mark.parametrize(
    "files, task, words",
    [
        ({"a": '{"text": "caf\xe9", "label": 1}\n' * 4}, "classification", "is not utf-8: set data.encoding"),
        ({"a": "\n\n"}, "classification", "of data.source=json has no rows"),
        (
            {"a": '{"text": "a", "label": 1}\n', "b": '{"text": "a", "label": 1, "more": 2}\n'},
            "classification",
            "have different columns",
        ),
        (
            {
                "a": "".join(
                    json.dumps({"messages": [{"role": "user", "content": q}], "tools": "x="}) + "\n" for q in "pqr"
                )
            },
            "chat",
            "`tools` must be a list of objects, or that list as valid JSON",
        ),
        (
            {
                "a": "".join(
                    json.dumps({"text": f"t {i}", "label": v}) + "\n" for i, v in enumerate([0, 1, float("nan")])
                )
            },
            "classification",
            "name another data.label_column.",
        ),
        (
            {"a": "".join(json.dumps({"text": f"t {i}", "label": i % 2}) + "\n" for i in range(4))},
            "token_classification",
            "data.label_column='label' holds one int64 a row, but task=token_classification reads one label for each",
        ),
    ],
    ids=["encoding", "blank", "columns", "tools", "nan", "words"],
)
def test_what_cannot_be_read_is_said_with_its_reason(
    files: dict[str, str], task: str, words: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_bytes(content.encode("latin-1"))
    cfg = DataConfig(source="json", train=str(tmp_path / "*.jsonl"), max_length=16, cache_dir=str(tmp_path / "c"))
    with pytest.raises(ValueError) as error:
        prepare.prepare(cfg, TOKENIZER, base.build({"name": task}))
    assert words in str(error.value) and "amounts" not in str(error.value)


def test_several_splits_of_the_hub_are_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    for split, count in (("train", 8), ("validation", 4), ("test", 2)):
        rows = [json.dumps({"text": f"{split} {i}", "label": i % 2}) + "\n" for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(rows))
    common: dict[str, Any] = {"source": str(folder), "eval": "test", "max_length": 16, "cache_dir": str(tmp_path / "c")}
    built = base.build({"name": "classification"})
    made = prepare.prepare(DataConfig(train=["train", "validation"], **common), TOKENIZER, built)
    assert made.info["train_rows"] == 12


def test_a_slice_without_a_sample_is_named(tmp_path: Path) -> None:
    rows = [{"text": "word " * 30, "domain": "big"}] * 20 + [{"text": "few words", "domain": "tiny"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"text": f"{i} {row['text']}"}) + "\n" for i, row in enumerate(rows)))
    cfg = DataConfig(
        source="json",
        train=str(path),
        eval=str(path),
        max_length=64,
        slice_column="domain",
        cache_dir=str(tmp_path / "c"),
    )
    with pytest.raises(
        ValueError, match=r"Of the slice .*tiny.* \(data.slice_column\): The 1 rows of data.eval make no"
    ):
        prepare.prepare(cfg, TOKENIZER, base.build({"name": "causal_lm"}))


def test_documents_on_both_sides_are_said_for_every_task(tmp_path: Path) -> None:
    rows = texts([0] * 40)
    found = data_warnings(*prepared(tmp_path, rows, rows[:3], task="causal_lm"))
    assert len(found) == 1 and found[0].startswith("all 3 evaluation rows have texts of the training data")
