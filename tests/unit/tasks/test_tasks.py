from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pat.common import scan
from pat.models import build, tokenizers
from pat.schema import DataConfig, ModelConfig, TaskConfig
from pat.tasks import base, causal_lm

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENIZER = tokenizers.byte_tokenizer()


def model_for(task: base.Task, model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    cfg = ModelConfig(init="random", config={"model_type": model_type, "max_position_embeddings": 64, **SIZES})
    return build.build_model(cfg, task, dtype, num_labels=3, tokenizer=TOKENIZER).eval()


def encode(task: base.Task, rows: dict[str, list[Any]], max_length: int = 16) -> dict[str, list[Any]]:
    return task.encoder(TOKENIZER, max_length, ["a", "b", "c"])(rows)


def classification_batch(weight: list[float] | None = None) -> dict[str, Tensor]:
    task = base.build({"name": "classification"})
    texts = ["one", "number two, which is longer than that", "3", "four and four"]
    batch = task.collate(encode(task, {"text": texts, "label": ["c", "a", "b", "a"]}), TOKENIZER)
    return batch | ({"weight": torch.tensor(weight)} if weight else {})


def test_every_task_is_found_by_its_name_and_says_what_it_measures() -> None:
    assert set(base.names()) <= {*scan.files("pat.tasks")}, "a task's file is called as the task is"
    texts = {"text": ["a text of more than sixteen tokens"] * 4, "label": ["1", "2", "1", "3"]}
    by_word = {"text": [["a", "text"]] * 4, "label": [["1", "2"]] * 4}
    for name in base.names():
        task = base.build(TaskConfig(name=name))
        rows = by_word if task.by_word else texts
        assert task.name == name
        assert task.best_metric in task.directions and task.headline in task.directions
        columns = task.columns_in(DataConfig(), list(rows))
        samples = task.encoder(TOKENIZER, 16, ["1", "2", "3"])({key: rows[column] for key, column in columns.items()})
        batch = task.collate(samples, TOKENIZER)
        count = len(batch["labels"])
        batch |= {"weight": torch.ones(count), "sample": torch.arange(count), "num_samples": torch.tensor(count)}
        with torch.no_grad():
            sums = task.sums(model_for(task, "llama"), batch)
        assert set(task.metrics(sums)) == set(task.directions)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "chess"}, f"no task.name='chess': allowed are {', '.join(base.names())}"),
        (TaskConfig(name="causal_lm", num_labels=2), "'causal_lm' does not take task.num_labels: allowed are name"),
    ],
)
def test_a_task_that_does_not_exist_is_an_error(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        base.build(given)


def test_a_metric_that_does_not_exist_is_an_error() -> None:
    task = base.build({"name": "classification"})
    assert task.higher_is_better("accuracy") and not task.higher_is_better("loss")
    with pytest.raises(ValueError, match="no metric 'f1': allowed are accuracy, macro_f1, loss"):
        task.higher_is_better("f1")


def test_texts_are_cut_padded_to_a_multiple_of_8_and_masked() -> None:
    batch = classification_batch()
    assert batch["input_ids"].shape == (4, 16)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == [3, 16, 1, 13]
    assert torch.all(batch["input_ids"][batch["attention_mask"] == 0] == 256)
    assert batch["labels"].tolist() == [2, 0, 1, 0]


def test_a_batch_is_not_padded_beyond_what_the_tokenizer_allows() -> None:
    tokenizer = tokenizers.byte_tokenizer()
    tokenizer.model_max_length = 11
    task = base.build({"name": "classification"})
    samples = {"input_ids": [[1] * 9, [2] * 10], "label": [0, 1]}
    assert task.collate(samples, tokenizer)["input_ids"].shape == (2, 11)


def test_pairs_keep_their_token_types() -> None:
    task = base.build({"name": "classification"})
    assert list(task.columns(DataConfig(text_pair_column="other"))) == ["text", "text_pair", "label"]
    samples = encode(task, {"text": ["ab"], "text_pair": ["cde"], "label": [1]})
    assert samples["input_ids"] == [list(b"abcde")]
    padded = task.collate(samples | {"token_type_ids": [[0, 0, 1, 1, 1]]}, TOKENIZER)
    assert padded["token_type_ids"].tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_classification_equals_a_direct_computation(model_type: str) -> None:
    task = base.build({"name": "classification"})
    model = model_for(task, model_type)
    batch = classification_batch()
    with torch.no_grad():
        logits = torch.cat(
            [
                model(input_ids=ids[None, : mask.sum()]).logits
                for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
        )
    direct = F.cross_entropy(logits, batch["labels"], reduction="none")
    torch.testing.assert_close(task.loss(model, batch), direct.mean())
    kept = [0, 1, 3]
    sums = task.evaluate(model, [batch | {"weight": torch.tensor([1.0, 1.0, 0.0, 1.0])}], "cpu")
    assert sums.dtype == torch.float64
    metrics = task.metrics(sums)
    assert metrics["accuracy"] == (logits.argmax(1) == batch["labels"])[kept].double().mean()
    assert metrics["loss"] == pytest.approx(direct[kept].double().mean().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_lm_equals_a_direct_computation(dtype: torch.dtype) -> None:
    task = base.build({"name": "causal_lm"})
    model = model_for(task, "llama", dtype)
    ids = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(1))
    batch = task.collate({"input_ids": ids.tolist()}, TOKENIZER)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
    direct = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none")
    loss = task.loss(model, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, direct.mean())
    metrics = task.metrics(task.evaluate(model, [batch | {"weight": torch.tensor([1.0, 0.0, 1.0])}], "cpu"))
    kept = direct.view(3, 15)[[0, 2]].double().mean().item()
    assert metrics["loss"] == pytest.approx(kept, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(kept), rel=1e-5)


def test_the_loss_in_chunks_is_the_loss_and_has_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    task = base.build({"name": "causal_lm"})
    ids = torch.randint(0, 256, (2, 17))
    results = []
    for limit in (1 << 26, 3 * 2 * 264):  # all at once; three tokens of each block at a time
        monkeypatch.setattr(causal_lm, "CHUNK_ELEMENTS", limit)
        model = model_for(task, "llama")
        loss = task.loss(model, task.collate({"input_ids": ids.tolist()}, TOKENIZER))
        loss.backward()
        results.append((loss, model.lm_head.weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_perplexity_stays_a_number() -> None:
    metrics = base.build({"name": "causal_lm"}).metrics(torch.tensor([1e6, 1.0], dtype=torch.float64))
    assert metrics["loss"] == 1e6 and math.isfinite(metrics["perplexity"])


def test_documents_become_blocks_of_equal_length_across_batches_of_rows() -> None:
    task = base.build({"name": "causal_lm"})
    encoder = task.encoder(TOKENIZER, 4, None)
    blocks = encoder({"text": ["abc", "", "defghi"]})["input_ids"] + encoder({"text": ["j", "klm"]})["input_ids"]
    eos = TOKENIZER.eos_token_id
    stream = [*b"abc", eos, *b"defghi", eos, *b"j", eos, *b"klm", eos]
    assert blocks == [stream[i : i + 4] for i in range(0, 16, 4)]
    assert encoder.left_over() == len(stream) - 16 == 1


def test_a_tokenizer_that_ends_texts_itself_does_not_end_them_twice() -> None:
    class Ends:
        eos_token_id = 9

        def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1, 9] for _ in texts]}

    encoder = base.build({"name": "causal_lm"}).encoder(Ends(), 4, None)  # pyright: ignore
    assert encoder({"text": ["a", "b"]}) == {"input_ids": [[1, 9, 1, 9]]}


def test_evaluation_leaves_the_training_mode_as_it_was() -> None:
    task = base.build({"name": "classification"})
    model = model_for(task, "bert").train()
    batch = classification_batch([1.0] * 4)
    one = task.evaluate(model, [batch], "cpu")
    assert model.training
    assert torch.equal(one, task.evaluate(model, [batch], "cpu"))  # no dropout
    torch.testing.assert_close(2 * one, task.evaluate(model, iter([batch, batch]), "cpu"))
