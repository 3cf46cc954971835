"""Metrics of classifiers and regressions, against formulas written anew, however the samples are spread over ranks."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pat.data import prepare
from pat.data.checks import label_shares
from pat.data.sampler import eval_batches
from pat.export import card
from pat.models import build, tokenizers
from pat.schema import Config, DataConfig, ModelConfig, TrainConfig
from pat.tasks import base, confusion

TOKENIZER = tokenizers.byte_tokenizer()


class Answers(torch.nn.Module):
    """Logits looked up by a sample's first token."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids[:, 0]])


def evaluated(task: base.Task, table: Tensor, labels: list[Any], world: int) -> tuple[dict[str, float], Tensor]:
    """Metrics and sums over `world` ranks; sample i has first token i and a length of its own."""
    from datasets import Dataset

    samples = Dataset.from_dict({"input_ids": [[i] * (1 + i % 5) for i in range(len(labels))], "label": labels})
    config = Config(train=TrainConfig(num_steps=1, global_batch_size=4 * world, eval_batch_size=4))
    shares = [
        task.evaluate(Answers(table), eval_batches(samples, task, TOKENIZER, config, rank, world), "cpu")
        for rank in range(world)
    ]
    total = torch.stack(shares).sum(0)
    return task.metrics(total), total


@pytest.mark.parametrize("classes", [2, 5, confusion.MATRIX + 3])
def test_classification(classes: int) -> None:
    """Would catch: F1 over the classes of one rank, weight-0 repeats counted, rows and columns swapped."""
    task, rng = base.build({"name": "classification"}), random.Random(classes)
    labels = [rng.randrange(max(2, classes - 1)) for _ in range(53)]  # the last class does not occur
    table = torch.randn(53, classes, generator=torch.Generator().manual_seed(classes))
    answers = table.argmax(1).tolist()
    pairs = list(zip(labels, answers, strict=True))
    f1, classes_of = {}, sorted({*labels, *answers})
    for one in classes_of:
        right = pairs.count((one, one))
        f1[one] = 2 * right / (labels.count(one) + answers.count(one))
    found = {world: evaluated(task, table, labels, world) for world in (1, 2, 3)}
    for metrics, sums in found.values():
        assert metrics["accuracy"] == sum(a == b for a, b in pairs) / 53
        assert metrics["macro_f1"] == pytest.approx(sum(f1.values()) / len(classes_of), rel=1e-12)
        assert metrics["loss"] == pytest.approx(F.cross_entropy(table, torch.tensor(labels)).item(), rel=1e-6)
        details = task.details(sums, [f"c{i}" for i in range(classes)])
        assert details is not None and json.loads(json.dumps(details)) == details
        for i in range(classes):
            own, right = details["classes"][f"c{i}"], pairs.count((i, i))
            assert own["samples"] == labels.count(i)
            assert own["precision"] == (right / answers.count(i) if answers.count(i) else 0.0)
            assert own["recall"] == (right / labels.count(i) if labels.count(i) else 0.0)
        if classes <= confusion.MATRIX:
            assert details["confusion"] == [[pairs.count((i, j)) for j in range(classes)] for i in range(classes)]
        assert torch.equal(sums[1:], found[1][1][1:])  # counts are exact on any number of ranks


def test_regression() -> None:
    task, generator = base.build({"name": "regression"}), torch.Generator().manual_seed(0)
    y = torch.randint(0, 6, (41,), generator=generator).double() * 0.7 + 1000.0  # with ties, far from 0
    p = (y + torch.randn(41, generator=generator).double()).float()
    p[7] = p[3]

    def places(values: Tensor) -> Tensor:
        return torch.tensor([((values < v).sum() + (values <= v).sum() + 1) / 2 for v in values])

    def r(a: Tensor, b: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])

    found = [evaluated(task, p[:, None], y.tolist(), world) for world in (1, 2, 3)]
    metrics = found[0][0]
    y32 = y.float().double()
    assert metrics["mse"] == pytest.approx(float((p.double() - y32).square().mean()), rel=1e-12)
    assert metrics["pearson"] == pytest.approx(r(p, y32), rel=1e-9)
    assert metrics["spearman"] == pytest.approx(r(places(p), places(y32)), rel=1e-12)
    assert all(other[0] == metrics and torch.equal(other[1], found[0][1]) for other in found[1:])  # to the last bit
    constant = evaluated(task, torch.ones(41, 1), y.tolist(), 1)[0]
    assert constant["pearson"] == constant["spearman"] == 0.0
    for broken in (math.nan, math.inf):  # of a model that has diverged
        answers = torch.randn(41, 1).index_fill(0, torch.tensor([7]), broken)
        one = evaluated(task, answers, y.tolist(), 1)[0]
        assert math.isnan(one["pearson"]) and math.isnan(one["spearman"]) and not math.isfinite(one["mse"])


def test_a_regression_has_one_output_and_its_loss_is_the_squared_error() -> None:
    task = base.build({"name": "regression"})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    cfg = ModelConfig(init="random", config={"model_type": "bert", **sizes})
    model = build.build_model(cfg, task, torch.float32, None, TOKENIZER).eval()
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    rows = {"text": ["a", "bc"], "label": ["1.5", -2]}
    batch = task.collate(task.encoder(TOKENIZER, 16, None)(rows), TOKENIZER)
    assert batch["labels"].tolist() == [1.5, -2.0] and batch["labels"].dtype == torch.float32
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(task.loss(model, batch), F.mse_loss(logits[:, 0], batch["labels"]))
    with pytest.raises(ValueError, match="label 'good' is not"):
        task.encoder(TOKENIZER, 16, None)({"text": ["a"], "label": ["good"]})


def test_class_weights() -> None:
    task = base.build({"name": "classification", "class_weights": "balanced"}).fitted([30, 10, 0])
    assert task.class_weights == (40 / 60, 2.0, 0.0)  # pyright: ignore
    logits, labels = torch.randn(8, 3), torch.tensor([0, 1, 0, 0, 1, 0, 0, 0])
    losses = F.cross_entropy(logits, labels, reduction="none") * torch.tensor([2 / 3, 2.0, 0.0])[labels]
    torch.testing.assert_close(task.loss_of(logits, {"labels": labels}), losses.mean())
    halves = [task.loss_of(logits[part], {"labels": labels[part]}) for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, losses.mean())  # accumulation changes nothing
    plain = base.build({"name": "classification"})
    assert plain.fitted([1, 2]) is plain and repr(plain) == repr(task)  # the same prepared data
    listed = base.build({"name": "classification", "class_weights": [1, 2]})
    assert listed.fitted([5, 5]).class_weights == (1.0, 2.0)  # pyright: ignore
    with pytest.raises(ValueError, match="has 2 numbers, but the training data has 3 labels"):
        listed.fitted([1, 1, 1])
    for wrong in ("balance", [1, -1], [], ["a"], {"pos": 2}):
        with pytest.raises(ValueError, match="task.class_weights=.*allowed are null, balanced, or a list"):
            base.build({"name": "classification", "class_weights": wrong})


def test_the_model_card_shows_each_class_and_what_is_confused() -> None:
    counts = torch.tensor([[3.0, 1.0], [0.0, 6.0]], dtype=torch.float64)
    shown = card._classes(confusion.table(counts, ["neg", "a|b"]))
    assert "| neg | 1 | 0.75 | 0.8571 | 4 |" in shown and "| a\\|b | 0.8571 | 1 | 0.9231 | 6 |" in shown
    assert "| neg | 3 | 1 |" in shown and "| a\\|b | 0 | 6 |" in shown
    broken = card._classes(confusion.table(counts, ["neg", "a\r\nb\u2028c\n"]))
    assert "| a b c | 0.8571 | 1 | 0.9231 | 6 |" in broken and "|  | neg | a b c |" in broken, "a line is a row"
    assert card._classes(None) == ""
    many = confusion.table(torch.ones(20, 20, dtype=torch.float64), [str(i) for i in range(20)])
    assert "Rows are labels" not in card._classes(many)


def test_shares_follow_the_weights_of_a_mixture(tmp_path: Path) -> None:
    parts = {}
    for name, labels, weight in (("one", "aab", 1.0), ("two", "abb", 3.0)):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"text": f"{name} {i}", "label": labels[i % 3]} for i in range(30)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts[name] = {"source": "json", "train": str(path), "eval": str(path), "weight": weight}
    cfg = DataConfig(source="mixture", sources=parts, max_length=16, cache_dir=str(tmp_path / "cache"))
    prepared = prepare.prepare(cfg, TOKENIZER, base.build({"name": "classification"}))
    assert label_shares(prepared) == [20 + 30, 10 + 60]
