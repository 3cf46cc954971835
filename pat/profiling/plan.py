"""The work for the models, and its order: pure functions of a seed.

A *block* asks every model the same twice, first in a random order, then in its reverse (A B B A, or B A A B): drift of
the machine cancels, and a coin decides who begins, on which the intervals of pat/statistics/ratio.py rest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pat.prompts.mix import Mix

LEAST = 6  # blocks: with fewer there is no 95 % interval of a paired ratio
DEFAULT_LENGTHS = ((128, 32),)  # used where there is neither a mix nor --lengths


@dataclass(frozen=True)
class Work:
    """One call: `batch_size` sequences of `prompt_tokens`, each of which is continued by `output_tokens`."""

    batch_size: int
    prompt_tokens: int
    output_tokens: int  # 0: a classifier, one forward
    prompt: int | None = None  # position in the mix; None: random tokens

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch size, prompt tokens, output tokens)."""
        return self.batch_size, self.prompt_tokens, self.output_tokens

    @property
    def tokens(self) -> int:
        """What throughput counts: tokens that are generated, or, of a classifier, read."""
        return self.batch_size * (self.output_tokens or self.prompt_tokens)


@dataclass(frozen=True)
class Block:
    """The same work for all models, in two rounds, the second in reverse."""

    work: Work
    order: tuple[int, ...]  # positions of the models in the first round

    @property
    def rounds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Positions of the models in the order of both rounds; the second is the first in reverse."""
        return self.order, self.order[::-1]


@dataclass(frozen=True)
class Plan:
    """Requests are single sequences, for latency; the grid is for throughput."""

    requests: tuple[Work, ...]  # one a block
    grid: tuple[Work, ...]  # of each `grid_blocks`
    grid_blocks: int

    @property
    def distinct(self) -> list[Work]:
        """Each piece of work once, the largest first: buffers are made before anything is timed."""
        return sorted(dict.fromkeys((*self.requests, *self.grid)), key=lambda work: work.shape, reverse=True)

    @property
    def grid_only(self) -> list[Work]:
        """The part of the grid that is not among the requests."""
        return [work for work in self.grid if work not in self.requests]

    def blocks(self, models: int, seed: int) -> list[Block]:
        """All blocks in a random order, so that no kind of work is measured in one stretch of time."""
        rng = random.Random(seed)
        works = [*self.requests, *(work for work in self.grid_only for _ in range(self.grid_blocks))]
        rng.shuffle(works)
        return [Block(work, tuple(rng.sample(range(models), models))) for work in works]


def of_lengths(lengths: Sequence[tuple[int, int]], batch_sizes: Sequence[int], blocks: int) -> Plan:
    """Requests of these lengths in turn, of each at least LEAST; the grid is every batch size with each of them."""
    number = max(blocks, LEAST * len(lengths))
    requests = tuple(Work(1, *lengths[i % len(lengths)]) for i in range(number))
    grid = tuple(Work(size, *length) for size in batch_sizes for length in lengths)
    return Plan(requests, grid, max(LEAST, blocks // 4))


def of_mix(
    mix: Mix,
    prompt_tokens: Sequence[int],  # of each prompt, by the first model's tokenizer
    generative: bool,
    batch_sizes: Sequence[int],
    blocks: int,
    seed: int,
) -> Plan:
    """Requests drawn by the weights of the prompts; the grid is every batch size with the median and 95 % length."""
    weights = np.array([prompt.weight for prompt in mix.prompts])
    drawn = np.random.default_rng(seed).choice(len(weights), blocks, p=weights / weights.sum())
    outputs = [(prompt.output_tokens or mix.head.output_tokens) * generative for prompt in mix.prompts]
    requests = tuple(Work(1, prompt_tokens[i], outputs[i], int(i)) for i in drawn)
    lengths = dict.fromkeys(
        (weighted_quantile(prompt_tokens, weights, q), weighted_quantile(outputs, weights, q)) for q in (0.5, 0.95)
    )
    grid = tuple(Work(size, *length) for size in batch_sizes for length in lengths)
    return Plan(requests, grid, max(LEAST, blocks // 4))


def weighted_quantile(values: Sequence[int], weights: np.ndarray, q: float) -> int:
    """The least value that a share q of the traffic does not exceed."""
    order = np.argsort(values, kind="stable")
    shares = np.cumsum(np.asarray(weights)[order]) / np.sum(weights)
    return int(np.asarray(values)[order][min(int(np.searchsorted(shares, q)), len(order) - 1)])


def parse_lengths(text: str) -> list[tuple[int, int]]:
    """`128:32,512:32`: prompt tokens and output tokens; of a classifier `128`, or `128:0`. Raises ValueError."""
    found = []
    for part in text.split(","):
        prompt, _, output = part.partition(":")
        numbers = (prompt, output or "0")
        if not all(number.isdecimal() and len(number) < 8 for number in numbers) or int(prompt) < 1:
            raise ValueError(
                f"--lengths {text}: give PROMPT:OUTPUT in tokens with commas between them, as 128:32,512:32, or for a "
                "classifier only PROMPT"
            )
        found.append((int(prompt), int(numbers[1])))
    return list(dict.fromkeys(found))


def of_a_kind(lengths: Sequence[tuple[int, int]], generative: bool, name: str) -> list[tuple[int, int]]:
    """Each length once, as a language model or a classifier takes it. ValueError without the tokens to generate."""
    taken = [(prompt, output * generative) for prompt, output in lengths]
    bad = next((prompt for prompt, output in taken if generative and not output), None)
    if bad is not None:
        raise ValueError(f"--lengths {bad} has no output tokens, and {name} generates text: give {bad}:32")
    return list(dict.fromkeys(taken))


def check_positions(prompt: int, output: int, positions: int | None, name: str) -> None:
    """ValueError where a model has no room for so many tokens."""
    if positions is not None and prompt + output > positions:
        raise ValueError(
            f"{prompt} + {output} tokens are beyond the {positions} positions of {name}: give shorter --lengths, or a "
            "mix of shorter prompts"
        )


def parse_batch_sizes(text: str) -> list[int]:
    """`1,8` as [1, 8], each once. ValueError for other than whole numbers of at least 1, of six digits at most."""
    parts = text.split(",")
    if not all(part.isdecimal() and 0 < int(part[:8]) and len(part) < 7 for part in parts):
        raise ValueError(f"--batch-sizes {text}: give whole numbers from 1 with commas between them, as 1,8")
    return list(dict.fromkeys(map(int, parts)))
