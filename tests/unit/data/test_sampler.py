from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pat.data import sampler
from pat.models import tokenizers
from pat.schema import Config
from pat.tasks import base

TOKENIZER = tokenizers.byte_tokenizer()
LM = base.build({"name": "causal_lm"})
CLASSES = base.build({"name": "classification"})


def reviews(texts: list[str] | None = None) -> Dataset:
    texts = texts or [f"review number {i}" * (1 + i % 3) for i in range(31)]
    encoder = CLASSES.encoder(TOKENIZER, 64, ["0", "1"])
    return Dataset.from_dict(encoder({"text": texts, "label": [i % 2 for i in range(len(texts))]}))


def config(global_batch: int, micro: int, seed: int = 0) -> Config:
    return Config().changed(seed=seed, train__global_batch_size=global_batch, train__micro_batch_size=micro)


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    orders = [sampler.order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4
    assert sampler.order(0, 0, 5).tolist() == [1, 3, 4, 0, 2]  # stays so: runs resume on other machines and versions


def global_batch(step: int, world: int, micro: int, total: int, n: int, seed: int = 3) -> list[int]:
    accum = total // (world * micro)
    return [
        i for a in range(accum) for r in range(world)
        for i in sampler.batch_indices(step, a, r, world, micro, accum, n, seed)
    ]  # fmt: skip


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(0, 30), st.sampled_from([1, 2, 4]))
def test_a_global_batch_does_not_depend_on_the_ranks(n: int, step: int, micro: int) -> None:
    batches = [global_batch(step, world, micro, 16, n) for world in (1, 2, 4)]
    assert batches[0] == batches[1] == batches[2]
    assert len(batches[0]) == 16


def test_every_sample_comes_once_an_epoch_across_steps_and_wraps() -> None:
    n, drawn = 12, []
    for step in range(6):
        drawn += global_batch(step, 2, 2, 8, n)
    assert all(sorted(drawn[i : i + n]) == list(range(n)) for i in range(0, 48, n))
    assert set(Counter(global_batch(0, 2, 4, 8, 3)).values()) <= {2, 3}  # a data set smaller than the global batch


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_loader_gives_the_same_batches_from_any_step_on(prefetch: bool) -> None:
    samples = reviews()

    def loader(rank: int = 0, world: int = 1) -> sampler.BatchLoader:
        return sampler.BatchLoader(samples, CLASSES, TOKENIZER, config(8, 2), rank, world, prefetch=prefetch)

    through = loader()
    batches = [through.batches(t) for t in range(5)]
    resumed = loader()
    for t, a in [(3, 0), (3, 1), (3, 2), (3, 3), (4, 0), (1, 2), (0, 0)]:
        again = resumed.batches(t)[a]
        assert again.keys() == batches[t][a].keys()
        assert all(torch.equal(again[name], batches[t][a][name]) for name in again)
    halves = [loader(rank, 2) for rank in (0, 1)]
    for a in range(2):
        for rank in (0, 1):
            assert torch.equal(halves[rank].batches(2)[a]["input_ids"], batches[2][2 * a + rank]["input_ids"])
    for one in (through, resumed, *halves):
        one.close()


def test_a_batch_that_the_ranks_cannot_share_is_an_error() -> None:
    samples = reviews()
    with pytest.raises(ValueError, match="global_batch_size=8 is not a multiple of train.micro_batch_size=2 x 3 ranks"):
        sampler.BatchLoader(samples, CLASSES, TOKENIZER, config(8, 2), 0, 3)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 7, 12])
def test_evaluation_covers_every_sample_once_in_as_many_batches_on_every_rank(n: int, world: int) -> None:
    ranks = [list(sampler.eval_indices(n, rank, world, 2)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    counted = Counter(i for batches in ranks for chosen, weight in batches for i in chosen if weight)
    assert counted == Counter(range(n))
    assert all(chosen for batches in ranks for chosen, _ in batches)


def test_evaluation_batches_hold_texts_of_similar_length() -> None:
    batches = list(
        sampler.eval_batches(
            reviews(["x" * (1 + i * 7 % 41) for i in range(41)]), CLASSES, TOKENIZER, config(4, 4), 0, 1
        )
    )
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == 41 * 42 // 2


@pytest.mark.parametrize("task", [CLASSES, LM])
def test_ranks_together_measure_what_one_rank_measures(task: base.Task) -> None:
    held = reviews() if task is CLASSES else Dataset.from_dict({"input_ids": [[i, i + 1, 3, 2 * i] for i in range(11)]})
    torch.manual_seed(0)
    table = torch.randn(264, 264)

    class Model(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            logits = table[input_ids]
            self.logits = logits if task is LM else logits.sum(1)[:, :2]
            return self

    sums: dict[int, Any] = {
        world: sum(
            task.evaluate(Model(), sampler.eval_batches(held, task, TOKENIZER, config(12, 2), rank, world), "cpu")
            for rank in range(world)
        )
        for world in (1, 2, 3)
    }
    for world in (2, 3):
        torch.testing.assert_close(sums[world], sums[1], rtol=1e-5, atol=1e-5)
        assert sums[world].shape == sums[1].shape and task.metrics(sums[world]).keys() == task.directions.keys()
