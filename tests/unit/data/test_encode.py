"""What is tokenised, and in how many processes: never more rows than asked for, and always the same samples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pat.data import encode, prepare, rows
from pat.schema import DataConfig
from pat.tasks import base
from tests.unit.data.test_data import CLASSES, LM, TOKENIZER, json_config, reviews, write_json


@pytest.fixture
def rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows in each call of an encoder, in this process."""
    seen: list[int] = []
    plain = encode.encoded

    def counted(encoder: Any, batch: Any, *arguments: Any) -> Any:
        seen.append(len(next(iter(batch.values()))))
        return plain(encoder, batch, *arguments)

    monkeypatch.setattr(encode, "encoded", counted)
    return seen


@pytest.mark.parametrize("task", [CLASSES, LM, base.build({"name": "chat"})])
def test_no_more_rows_are_tokenised_than_samples_are_wanted(task: Any, tmp_path: Path, rows_seen: list[int]) -> None:
    """Fails if all rows are tokenised first and samples are left out afterwards."""
    held = write_json(tmp_path / "held.jsonl", reviews(3))
    made = prepare.prepare(json_config(tmp_path, reviews(400), eval=held, max_train_samples=7), TOKENIZER, task)
    assert sum(rows_seen) == 7 + 3 and made.info["train_rows"] == 7 and 0 < len(made.train) <= 7


def test_another_number_of_rows_is_another_entry_and_has_the_same_rows_held_out(tmp_path: Path) -> None:
    few, more = (
        prepare.prepare(json_config(tmp_path, reviews(400), max_train_samples=limit), TOKENIZER, CLASSES)
        for limit in (10, None)
    )
    assert few.info["cache"] != more.info["cache"] and few.eval[:] == more.eval[:]
    assert {tuple(ids) for ids in few.train["input_ids"]} < {tuple(ids) for ids in more.train["input_ids"]}


def test_the_samples_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks reach over documents, so an encoder for each process would cut them elsewhere."""
    monkeypatch.setattr(encode, "SHARD_ROWS", 30)
    rows = reviews(100)
    made = {}
    for count in (1, 3):
        cfg = json_config(tmp_path, rows, cache_dir=str(tmp_path / f"cache-{count}"), num_proc=count)
        made[count] = prepare.prepare(cfg, TOKENIZER, LM)
    assert len(list(Path(made[3].info["cache"]).glob("train*.arrow"))) == 3
    assert made[1].train[:] == made[3].train[:] and made[1].eval[:] == made[3].eval[:]
    counts = [{k: v for k, v in one.info.items() if k not in ("cache", "built")} for one in made.values()]
    assert counts[0] == counts[1] and counts[0]["train_tokens_left_over"] > 0
    again = prepare.prepare(
        json_config(tmp_path, rows, cache_dir=str(tmp_path / "cache-3"), num_proc=None), TOKENIZER, LM
    )
    assert not again.info["built"] and again.train[:] == made[1].train[:]


def test_a_row_that_fails_in_another_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "SHARD_ROWS", 5)
    rows = [{"prompt": "q" * (99 if i == 8 else 3), "completion": "a"} for i in range(12)]  # nothing is left to learn
    cfg = json_config(tmp_path, rows, eval=write_json(tmp_path / "held.jsonl", rows[:2]), num_proc=2)
    with pytest.raises(ValueError, match="row 9 of data.train"):
        prepare.prepare(cfg, TOKENIZER, base.build({"name": "chat"}))


def test_a_bad_row_is_named_where_it_is_alone_in_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of 11 rows in shards of 5."""
    monkeypatch.setattr(encode, "SHARD_ROWS", 5)
    rows = [{"prompt": "q" * (99 if i == 10 else 3), "completion": "a"} for i in range(11)]
    cfg = json_config(tmp_path, rows, eval=write_json(tmp_path / "held.jsonl", rows[:2]), num_proc=1)
    with pytest.raises(ValueError, match="row 11 of data.train"):
        prepare.prepare(cfg, TOKENIZER, base.build({"name": "chat"}))


def test_one_process_a_core_and_a_shard_at_most() -> None:
    cores = len(os.sched_getaffinity(0))
    assert encode.processes(None, 10**9) == cores and encode.processes(64, 10**9) == 64
    assert encode.processes(64, encode.SHARD_ROWS) == 1 and encode.processes(64, encode.SHARD_ROWS + 1) == 2
    assert DataConfig(source="generated", max_length=8).num_proc is None


@pytest.mark.parametrize(("bad", "found"), [([700], 700), ([3, 9], 3), ([0], 0), (range(1000), None), ([], None)])
def test_the_first_bad_row_is_found_with_few_encoders(bad: Any, found: int | None) -> None:
    """One takes seconds to make from a large tokenizer, so it cannot be made for every row."""
    made = list[int]()

    def fresh() -> Any:
        made.append(1)

        def encode(batch: Any) -> Any:
            if set(batch["x"]) & set(bad):
                raise ValueError
            return batch

        return encode

    assert rows._first_failing({"x": list(range(1000))}, fresh) == found
    assert len(made) < 40
