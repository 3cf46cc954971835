"""Which samples a step sees: a pure function of the seed and the step, so nothing has to be saved to resume.

Global positions count all samples ever drawn. Step t takes the positions [tB, (t+1)B), whatever the number of ranks;
position p is sample `order(seed, p // n, n)[p % n]`, so a global batch may reach into the next epoch. Of several
sources `Mixture.order` takes the place of `order`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pat.data.mixture import Mixture, permutation
from pat.schema import Config
from pat.tasks.base import Batch, Task

# B samples of a global batch, n samples of the data set

More = Callable[[Sequence[int], Batch], Batch]


def order(seed: int, epoch: int, n: int) -> Tensor:
    """(n,) int64: the permutation of the samples in an epoch. Shared: do not write to it."""
    return permutation(f"{seed}/{epoch}", n)


def batch_indices(
    step: int,
    accumulation_index: int,
    rank: int,
    world: int,
    micro: int,
    accum: int,
    n: int,
    seed: int,
    mixture: Mixture | None = None,
) -> list[int]:
    """(micro,) the samples of one rank's forward: a contiguous run of the global batch of `world * micro * accum`.

    The runs are in the order of (accumulation_index, rank): micro-batches are the same on any number of ranks.
    """
    assert 0 <= accumulation_index < accum and 0 <= rank < world, "no such micro-batch"
    first = step * world * micro * accum + (accumulation_index * world + rank) * micro
    total = sum(mixture.draws) if mixture else n
    chosen = []
    for position in range(first, first + micro):
        epoch, place = divmod(position, total)
        chosen.append(int((mixture.order(seed, epoch) if mixture else order(seed, epoch, n))[place]))
    return chosen


def first_indices(count: int, n: int, seed: int, mixture: Mixture | None = None) -> list[int]:
    """The samples that a run sees first, in their order: those that calibrate."""
    return batch_indices(0, 0, 0, 1, count, 1, n, seed, mixture)


class BatchLoader:
    """Random access to a rank's batches; a thread prepares those of the next step."""

    def __init__(
        self,
        samples: Dataset,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        rank: int,
        world: int,
        device: torch.device | str = "cpu",
        prefetch: bool = True,
        mixture: Mixture | None = None,
        more: More | None = None,
    ) -> None:
        """The batch sizes and the seed are the config's; of several sources, `mixture` says how often each is seen.

        `more` adds further tensors to a batch, by its samples' numbers in the data set.
        """
        self.mixture, self.more = mixture, more
        self.samples, self.task, self.tokenizer = samples, task, tokenizer
        self.rank, self.world, self.device, self.seed = rank, world, device, config.seed
        batch = config.train.global_batch_size
        self.micro = config.train.micro_batch_size or max(1, batch // world)
        self.accum = batch // (self.micro * world)
        if self.accum * self.micro * world != batch:
            raise ValueError(
                f"train.global_batch_size={batch} is not a multiple of "
                f"train.micro_batch_size={self.micro} x {world} ranks."
            )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches") if prefetch else None
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def batches(self, step: int) -> list[Batch]:
        """This rank's batch for each forward of a step, on the device."""
        ready, self._next = self._next, None
        batches = ready[1].result() if ready is not None and ready[0] == step else self._make(step)
        if self._thread is not None:
            self._next = (step + 1, self._thread.submit(self._make, step + 1))
        return [{name: t.to(self.device, non_blocking=True) for name, t in batch.items()} for batch in batches]

    def close(self) -> None:
        """End the thread, once the batch that it is at is done; later batches are made when asked for."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = self._next = None

    def _make(self, step: int) -> list[Batch]:
        batches = []
        for micro_index in range(self.accum):
            where = (step, micro_index, self.rank, self.world, self.micro, self.accum)
            chosen = batch_indices(*where, len(self.samples), self.seed, self.mixture)
            batch = self.task.collate(_take(self.samples, chosen), self.tokenizer)
            batches.append(batch | self.more(chosen, batch) if self.more else batch)
        return batches


def eval_batches(
    samples: Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    rank: int,
    world: int,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """This rank's share of the samples, the longest first; over the ranks each has weight 1 exactly once.

    Sorted, a batch holds hardly any padding. Every rank yields the same number of batches, because a forward is
    collective at ZeRO 3: a rank that has run out repeats a sample with weight 0.
    """
    train = config.train
    size = train.eval_batch_size or train.micro_batch_size or max(1, train.global_batch_size // world)
    by_length = np.argsort(-token_counts(samples), kind="stable")
    for positions, weight in eval_indices(len(samples), rank, world, size):
        chosen = by_length[positions].tolist()
        batch = task.collate(_take(samples, chosen), tokenizer)
        batch |= {"weight": torch.full((len(chosen),), weight), "sample": torch.tensor(chosen)}
        batch["num_samples"] = torch.tensor(len(samples))
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def token_counts(samples: Dataset) -> np.ndarray:
    """(n,) int64: the tokens of each sample."""
    columns: Any = samples.select_columns("input_ids").with_format("arrow")[:]
    return pc.list_value_length(columns["input_ids"]).to_numpy().astype(np.int64)  # pyright: ignore


def eval_indices(n: int, rank: int, world: int, batch_size: int) -> Iterator[tuple[list[int], float]]:
    """(positions, weight) of each evaluation batch of a rank; position 0 with weight 0 where nothing is left."""
    for start in range(0, n, world * batch_size):
        first = start + rank * batch_size
        chosen = list(range(first, min(first + batch_size, n)))
        yield (chosen, 1.0) if chosen else ([0], 0.0)


def _take(samples: Dataset, indices: list[int]) -> dict[str, list[Any]]:
    return samples[indices]
