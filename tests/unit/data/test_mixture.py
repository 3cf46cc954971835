from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pat.data import prepare, sampler, sources
from pat.data.checks import both_sides
from pat.data.mixture import Mixture
from pat.models import tokenizers
from pat.schema import Config, DataConfig
from pat.tasks import base

TOKENIZER = tokenizers.byte_tokenizer()
CHAT = base.build({"name": "chat"})


def test_weights_say_how_often_each_sample_comes() -> None:
    mixture = Mixture((6, 10, 4), (2.0, 0.5, 1.0))
    assert mixture.draws == [12, 5, 4]
    epochs = [mixture.order(0, epoch) for epoch in range(4)]
    assert all(len(order) == 21 for order in epochs)
    counts = [Counter(order.tolist()) for order in epochs]
    assert all(count[i] == 2 for count in counts for i in range(6))
    assert all(count[i] == 1 for count in counts for i in range(16, 20))
    assert all(counts[e][i] + counts[e + 1][i] == 1 for e in (0, 2) for i in range(6, 16))  # half now, half then
    assert len({tuple(order.tolist()) for order in epochs}) == 4
    # It stays so: runs resume on other machines and versions.
    assert Mixture((3, 2), (1.0, 2.0)).order(0, 1).tolist() == [3, 2, 1, 4, 3, 0, 4]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 3.5)), min_size=1, max_size=4), st.integers(0, 5))
def test_a_source_is_drawn_from_without_replacement(found: list[tuple[int, float]], seed: int) -> None:
    mixture = Mixture(tuple(n for n, _ in found), tuple(w for _, w in found))
    drawn: Counter[int] = Counter()
    for epoch in range(5):
        drawn.update(mixture.order(seed, epoch).tolist())
    offset = 0
    for n, m in zip(mixture.sizes, mixture.draws, strict=True):
        times = [drawn[offset + i] for i in range(n)]
        assert sum(times) == 5 * m and max(times) - min(times) <= 1
        offset += n


def test_a_global_batch_of_a_mixture_does_not_depend_on_the_ranks_or_on_what_was_drawn_before() -> None:
    mixture = Mixture((7, 5), (1.5, 0.3))

    def batch(step: int, world: int) -> list[int]:
        accum = 8 // (world * 2)
        where = [(a, r) for a in range(accum) for r in range(world)]
        return [i for a, r in where for i in sampler.batch_indices(step, a, r, world, 2, accum, 12, 3, mixture)]

    steps = [batch(step, 1) for step in range(6)]
    assert [batch(step, 4) for step in (5, 0, 3)] == [steps[5], steps[0], steps[3]]


def test_one_source_of_weight_one_is_an_epoch_of_its_samples() -> None:
    assert sorted(Mixture((9,), (1.0,)).order(2, 3).tolist()) == list(range(9))


def mixed(tmp_path: Path, **changes: Any) -> DataConfig:
    files = {
        "chats": [{"messages": [{"role": "user", "content": "q"}]}],
        "texts": [{"text": f"text {i}"} for i in range(20)],
        "pairs": [{"prompt": f"{i}+1", "completion": f"{i + 1}", "body": f"b{i}"} for i in range(30)],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources: dict[str, Any] = {
        "texts": {"source": "json", "train": str(tmp_path / "texts.jsonl"), "weight": 2},
        "pairs": {"source": "json", "train": str(tmp_path / "pairs.jsonl"), "max_train_samples": 10},
    }
    for name, fields in changes.items():
        sources[name] = sources.get(name, {}) | fields
    return DataConfig(
        source="mixture", sources=sources, max_length=32, cache_dir=str(tmp_path / "cache"), eval_fraction=0.25
    )


def test_sources_are_prepared_each_by_itself_and_drawn_by_weight(tmp_path: Path) -> None:
    made = prepare.prepare(mixed(tmp_path), TOKENIZER, CHAT)
    assert made.mixture == Mixture((len(made.train) - 10, 10), (2.0, 1.0))
    assert made.info["train_rows"] + made.info["eval_rows"] == 37 and made.info["built"], (
        "13 of the pairs are not taken"
    )
    assert len(made.eval) == made.info["eval_samples"]
    # Another weight is no other data.
    again = prepare.prepare(mixed(tmp_path, texts={"weight": 0.5}), TOKENIZER, CHAT)
    assert not again.info["built"] and again.mixture and again.mixture.weights == (0.5, 1.0)
    config = Config().changed(train__global_batch_size=4, train__micro_batch_size=2)
    one, other = (
        sampler.BatchLoader(made.train, CHAT, TOKENIZER, config, 0, 1, mixture=made.mixture) for _ in range(2)
    )
    batches = [one.batches(step)[1] for step in range(20)]
    for step in (13, 14, 2):
        again_there = other.batches(step)[1]
        assert all(torch.equal(again_there[name], batches[step][name]) for name in again_there)
    one.close()
    other.close()


@pytest.mark.parametrize("own", [True, False])
def test_rows_that_are_evaluated_in_one_source_and_trained_on_in_another_are_counted(own: bool, tmp_path: Path) -> None:
    """Fails if each source only looks at its own rows: two files, or one file twice with other rows held out."""
    texts = tmp_path / "texts.jsonl"
    mixed(tmp_path)
    (tmp_path / "more.jsonl").write_text(
        texts.read_text() + "\n".join(json.dumps({"text": f"m {i}"}) for i in range(9))
    )
    other = {"eval": str(texts)} if own else {"eval_fraction": 0.05}
    more = {"source": "json", "train": str(tmp_path / "more.jsonl"), **other}
    made = prepare.prepare(mixed(tmp_path, more=more), TOKENIZER, CHAT)
    parts = {split: {tuple(ids) for ids in getattr(made, split)["input_ids"]} for split in ("train", "eval")}
    expected = [tuple(ids) in parts["train"] for ids in made.eval["input_ids"]]
    assert made.info["eval_rows_in_train"] == sum(expected) > (20 if own else 0)
    assert next(both_sides(made)).startswith(f"{sum(expected)} of the {len(expected)} evaluation rows have texts")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"texts": {"weight": 0}}, "data.sources.texts.weight=0 must be above 0"),
        ({"texts": {"columns": "x"}}, "data.sources.texts has no key 'columns': allowed are weight, source, subset"),
        ({"texts": {"max_length": 8}}, "data.sources.texts has no key 'max_length'"),
        ({"other": {"weight": 1}}, "data.sources.other must say its source: a hub name, json"),
        ({"pairs": {"train": "nowhere.jsonl"}}, "data.sources.pairs: data.train: no file matches 'nowhere.jsonl'"),
        ({"pairs": {"subset": "x"}}, "data.sources.pairs: data.subset is 'x', but with data.source=json"),
    ],
)
def test_what_is_wrong_with_a_source_is_said_with_its_name(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare.prepare(mixed(tmp_path, **changes), TOKENIZER, CHAT)


def test_a_missing_file_is_said_with_its_source_before_anything_is_read(tmp_path: Path) -> None:
    sources.check_files(mixed(tmp_path))
    with pytest.raises(ValueError, match="data.sources.pairs: data.eval: no file matches 'nowhere.jsonl'"):
        sources.check_files(mixed(tmp_path, pairs={"eval": "nowhere.jsonl"}))


def test_sources_need_a_mixture_and_a_mixture_needs_sources(tmp_path: Path) -> None:
    config = mixed(tmp_path).changed(source="json")
    with pytest.raises(ValueError, match="data.sources is .* with data.source=json"):
        prepare.prepare(config, TOKENIZER, CHAT)
    with pytest.raises(ValueError, match="data.source=mixture needs data.sources"):
        prepare.prepare(DataConfig(source="mixture", max_length=8), TOKENIZER, CHAT)


def test_sources_of_different_labels_are_an_error(tmp_path: Path) -> None:
    entries = {}
    for name, labels in {"one": ["a", "b"], "two": ["b", "c"]}.items():
        rows = [{"text": f"{name} {i}", "label": labels[i % 2]} for i in range(20)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        entries[name] = {"source": "json", "train": str(tmp_path / name)}
    config = DataConfig(source="mixture", sources=entries, max_length=8, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"the same labels, but have one: \['a', 'b'\]; two: \['b', 'c'\]"):
        prepare.prepare(config, TOKENIZER, base.build({"name": "classification"}))
