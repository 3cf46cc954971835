"""Figures of slices while a model trains: those of `pat evaluate`, and no metric is changed by asking for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pat.data import prepare, sampler
from pat.evaluation import samples
from pat.evaluation.measures import of_rows
from pat.models.tokenizers import byte_tokenizer
from pat.schema import Config, DataConfig
from pat.tasks import base
from pat.training import slices
from tests import models

DOMAINS = {"x": "film", "y": "law", "z": "chat"}  # letter that its texts are made of -> domain
TOKENIZER: Any = byte_tokenizer()


def rows(number: int = 60) -> list[dict[str, Any]]:
    made = []
    for i in range(number):
        letter = "xyz"[i % 3] if i % 5 else "x"
        made.append({"text": letter * (3 + i % 17), "label": i % 2, "domain": DOMAINS[letter], "id": str(i)})
    return made


def written(folder: Path, lines: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / name)


def config(folder: Path, task: str, **changed: Any) -> Config:
    """Evaluated on these rows, whole batches of 4."""
    path = written(folder, rows())
    return Config().changed(
        task__name=task, data__source="json", data__train=path, data__eval=path, data__max_length=8,
        data__slice_column="domain", data__cache_dir=str(folder / "cache"), train__global_batch_size=12,
        train__eval_batch_size=4, **changed,
    )  # fmt: skip


class Ranks:
    """Three of them, one after the other: a sum is complete with the last."""

    def __init__(self) -> None:
        self.sums: dict[Any, Tensor] = {}

    def sum(self, mine: Tensor) -> Tensor:
        key = tuple(mine.shape)
        self.sums[key] = self.sums[key] + mine if key in self.sums else mine.clone()
        return self.sums[key]


@pytest.mark.parametrize("name", ["classification", "causal_lm"])
def test_they_are_those_of_pat_evaluate_on_any_ranks(name: str, tmp_path: Path) -> None:
    """Would catch: a sample that fills up a last batch and counts again, a slice of other samples than its own, a mean
    of means, and a metric that is not bit for bit what it is without slices."""
    asked = config(tmp_path, name, data__max_eval_samples=37)
    task = base.build(asked.task)
    auto: dict[str, Any] = {"auto": AutoModelForSequenceClassification} if name == "classification" else {}
    model = models.model("bert" if auto else "llama", vocab_size=320, **auto).eval()
    model.config.id2label, model.config.label2id = {0: "0", 1: "1"}, {"0": 0, "1": 1}
    prepared = prepare.prepare(asked.data, TOKENIZER, task)
    expected = of_rows(samples.ask(asked, model, TOKENIZER, "it", "cpu")[0])
    made, ranks, plain = slices.of(asked, task, prepared), Ranks(), Ranks()
    assert made is not None
    for rank in range(3):

        def batches(rank: int = rank) -> Any:
            return sampler.eval_batches(prepared.eval, task, TOKENIZER, asked, rank, 3)

        total, found = made.evaluate(model, batches(), "cpu", ranks)  # type: ignore[arg-type]
        without = plain.sum(task.evaluate(model, batches(), "cpu"))
    assert task.metrics(total) == task.metrics(without)
    main = expected.measures[task.sample_metric]
    wanted = {f"{task.sample_metric}[{of}]": main.places(numbers) for of, numbers in expected.slices.items()}
    assert (
        found.keys() == wanted.keys()
        and {f"{task.sample_metric}[domain={one}]" for one in DOMAINS.values()} <= found.keys()
    )
    for of, places in wanted.items():
        assert found[of]["n"] == len(places) and found[of]["value"] == pytest.approx(main.of(places), rel=1e-5), of
    assert len({one["value"] for one in found.values()}) > 2, "they differ"


def test_every_sample_is_of_one_slice_and_nothing_else_changes(tmp_path: Path) -> None:
    """Blocks of text are not made across domains; the rows that are held out are those that always are."""
    task = base.build({"name": "causal_lm"})
    common = {"source": "json", "train": written(tmp_path, rows()), "max_length": 8, "eval_fraction": 0.5}
    common["cache_dir"] = str(tmp_path / "cache")
    plain, found = (
        prepare.prepare(DataConfig().changed(**common, **more), TOKENIZER, task)
        for more in ({}, {"slice_column": "domain"})
    )
    assert plain.slices is None and found.slices is not None and len(found.slices) == len(found.eval)
    assert plain.train["input_ids"] == found.train["input_ids"]
    texts = [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in found.eval["input_ids"]]
    assert [(f"domain={DOMAINS[text[0]]}",) for text in texts] == found.slices
    assert all(len(set(text)) == 1 for text in texts)
    held = "".join(TOKENIZER.decode(ids, skip_special_tokens=True) for ids in plain.eval["input_ids"])
    assert {text[0] for text in texts} == set(held)


def test_sources_of_a_mixture_are_slices(tmp_path: Path) -> None:
    one, two = (written(tmp_path, rows(), f"{name}.jsonl") for name in "ab")
    data = DataConfig().changed(
        source="mixture", max_length=32, cache_dir=str(tmp_path / "cache"),
        sources={
            "a": {"source": "json", "train": one, "eval": one, "max_eval_samples": 7, "slice_column": "domain"},
            "b": {"source": "json", "train": two, "eval": two},
        },
    )  # fmt: skip
    prepared = prepare.prepare(data, TOKENIZER, base.build({"name": "classification"}))
    assert prepared.slices is not None and len(prepared.slices) == len(prepared.eval) == 67
    assert all(each[0] == "source=a" and each[1].startswith("domain=") for each in prepared.slices[:7])
    assert set(prepared.slices[7:]) == {("source=b",)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data__slice_column": "topic"}, "data.slice_column='topic' is not in data.eval"),
        ({"data__slice_column": "label"}, "is a slice of every data set already"),
        ({"data__slice_column": "id"}, "has 120 values in the evaluation data, '0' and"),
        ({"envelope": {"slices": {"min": 0.1, "dimensions": ["topic"]}}}, "there is domain and form and label"),
        ({"envelope": {"slices": {"min": 0.1, "least": 200}}}, "the largest slice of the evaluation data has"),
    ],
)
def test_what_names_no_slices_is_refused_before_the_ranks_start(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = written(tmp_path, rows(120), "many.jsonl")
    asked = config(tmp_path, "classification").changed(data__train=path, data__eval=path, **changed)
    task = base.build(asked.task)
    with pytest.raises(ValueError, match=words) as error:
        slices.of(asked, task, prepare.prepare(asked.data, TOKENIZER, task))
    assert "\n" not in str(error.value)
