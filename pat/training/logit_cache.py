"""Files with tokens that were drawn from a teacher's distributions: `distill.cache`.

    manifest.json           what was drawn, from which teacher, for which data; bytes and sha256 of each shard
    shard-N.safetensors     samples [N S, (N+1) S) of the training data, by their numbers in it:
        row_starts          (samples + 1,) int64: where the rows of a sample begin; its rows are what its loss counts
        pair_starts         (samples + 1,) int64: where its pairs (token, count) begin
        lengths             (rows,) uint8: pairs of each row
        entropy             (rows,) fp16: of the teacher's distribution, in nats
        counts              (pairs,) uint8: how often a token was drawn, of K times in all
        ids                 (pairs,) uint16: the token modulo 2^16; ids_high (pairs,) uint8 where there are more tokens

A sample is found by its number, so the order of training, ranks and epochs play no part. Both kinds of files appear
whole under their names or not at all, and a shard counts once the manifest names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pat.common import files
from pat.common.comm import Comm
from pat.common.hashing import file_sha256
from pat.common.text import size_in_words
from pat.data.prepare import PreparedData
from pat.models.tokenizers import tokenizer_digest
from pat.schema import Config
from pat.tasks.base import DRAWN_IDS, DRAWN_WEIGHTS, ENTROPY, Batch, Task

FORMAT = 1
MANIFEST = "manifest.json"
MAX_DRAWS = 255  # of a row: a count is a byte
OPEN_SHARDS = 64  # that a rank keeps mapped

# What must be the same in a run that learns from a cache, and the words of the error where it is not.
_DIFFERENCES = {
    "format": "has the format {old}, and this version of pat reads {new}",
    "task": "was made for {old}, and this run's task is {new}",
    "tokenizer": "was made with another tokenizer than this run's",
    "max_length": "was made with data.max_length={old}, and this run has {new}",
    "vocab_size": "holds answers among {old} tokens, and this run's model has logits for {new}",
    "data": "was made for other data than this run's, or other settings of it (its evaluation's and slices count)",
    "temperature": "was made with distill.temperature={old}, and this run has {new}",
}


@dataclass(frozen=True)
class Rows:
    """What was drawn for the rows of one sample or of several, one after another."""

    lengths: np.ndarray  # (rows,) distinct tokens of each
    entropy: np.ndarray  # (rows,) fp16
    ids: np.ndarray  # (pairs,) int32
    counts: np.ndarray  # (pairs,) uint8


def made_for(
    config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, prepared: PreparedData, student: PretrainedConfig
) -> dict[str, Any]:
    """What a cache for this run says of it, as plain values."""
    return {
        "format": FORMAT,
        "task": repr(task),
        "tokenizer": tokenizer_digest(tokenizer),
        "max_length": config.data.max_length,
        "vocab_size": student.get_text_config().vocab_size,
        "data": [list(each) for each in prepared.origin],
        "temperature": config.distill.temperature,
    }


def fitting(
    config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, prepared: PreparedData, student: PretrainedConfig
) -> LogitCache:
    """The cache that `distill.cache` names. ValueError where it is not whole, by the sizes of its files, or was made
    for another run."""
    cache = LogitCache(Path(str(config.distill.cache)))
    for key, value in made_for(config, task, tokenizer, prepared, student).items():
        if cache.manifest.get(key) != value:
            said = _DIFFERENCES[key].format(old=cache.manifest.get(key), new=value)
            raise ValueError(f"{cache.name} {said}: make one for this run (pat distill cache), or leave it out")
    return cache


class LogitCache:
    """A finished cache, for reading."""

    def __init__(self, folder: Path) -> None:
        """ValueError where it is not there, not finished, or has files of other sizes than it says."""
        self.folder, self.name = folder, f"distill.cache={folder}"
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(f"{self.name} holds no {MANIFEST}: make it (pat distill cache), or give another folder")
        self.manifest: dict[str, Any] = files.read_json(path) or {}
        if not self.manifest.get("complete"):
            raise ValueError(f"{self.name} is not finished: the same `pat distill cache` goes on where it stopped")
        for shard in self.manifest["shards"]:
            file = folder / shard["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                there = "is missing" if size is None else f"has {size:,} bytes, and not {shard['bytes']:,}"
                raise ValueError(f"{self.name} is damaged: {shard['file']} {there}; copy or make it again")
        self.sha256 = sha256(path.read_bytes()).hexdigest()
        self._opened = lru_cache(OPEN_SHARDS)(self._open)

    @property
    def bytes_per_row(self) -> float:
        """Of all files, for each token that is predicted."""
        return sum(shard["bytes"] for shard in self.manifest["shards"]) / self.manifest["rows"]

    def identity(self) -> dict[str, str]:
        """The teacher and the draws, as a run records them for its summary and its resume."""
        teacher = self.manifest["teacher"]
        drawn = {"cache": str(self.folder), "cache_sha256": self.sha256}
        return {"path": teacher["path"], "sha256": teacher["sha256"]} | drawn

    def check_hashes(self, world: Comm) -> None:
        """ValueError where a shard is not what was written; each rank reads its share of them. Collective."""
        mine = self.manifest["shards"][world.rank :: world.world_size]
        bad = [each["file"] for each in mine if file_sha256(self.folder / each["file"]) != each["sha256"]]
        every = sorted(name for names in world.gather(bad) for name in names)
        if every:
            raise ValueError(f"{self.name} is damaged: {every[0]} has another sha256; copy or make it again")

    def check_teacher(self, teacher: dict[str, str]) -> None:
        """ValueError where `distill.teacher`, which is given besides, has other weights."""
        ours = self.manifest["teacher"]
        if ours["sha256"] != teacher["sha256"]:
            raise ValueError(
                f"{self.name} holds answers of the teacher {ours['path']} (sha256 {ours['sha256'][:12]}), and "
                f"distill.teacher='{teacher['path']}' is another (sha256 {teacher['sha256'][:12]}): leave one out"
            )

    def rows(self, samples: Sequence[int]) -> Rows:
        """The rows of these samples, in this order."""
        parts = [self._sample(number) for number in samples]
        return Rows(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("lengths", "entropy", "ids", "counts")
            )
        )

    def more(self, task: Task, samples: Sequence[int], batch: Batch) -> Batch:
        """What is added to a batch of these samples: token ids (b, s, u) int32, their weights p^ and the entropies
        (b, s), fp32; 0 where the loss does not count."""
        counts = task.supervised(batch)
        places = counts.flatten().nonzero()[:, 0]  # of the n = b s rows, those that the cache has
        rows = self.rows(samples)
        if len(rows.lengths) != len(places):
            raise ValueError(
                f"{self.name} has {len(rows.lengths)} rows for samples {list(samples)}, and their loss counts "
                f"{len(places)}: make it again"
            )
        first = np.cumsum(rows.lengths, dtype=np.int64) - rows.lengths
        column = np.arange(len(rows.ids)) - np.repeat(first, rows.lengths)
        row = places.numpy().repeat(rows.lengths)
        shape = (counts.numel(), int(rows.lengths.max(initial=1)))
        ids, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        entropy = np.zeros(counts.numel(), np.float32)
        ids[row, column] = rows.ids
        weights[row, column] = rows.counts / np.float32(self.manifest["draws"])
        entropy[places.numpy()] = rows.entropy
        return {
            DRAWN_IDS: torch.from_numpy(ids).unflatten(0, counts.shape),
            DRAWN_WEIGHTS: torch.from_numpy(weights).unflatten(0, counts.shape),
            ENTROPY: torch.from_numpy(entropy).view_as(counts),
        }

    def describe(self) -> str:
        """What it holds, in a sentence."""
        told, size = self.manifest, sum(shard["bytes"] for shard in self.manifest["shards"])
        return (
            f"{self.folder} holds {told['draws']} draws from {told['teacher']['path']} for each of {told['rows']:,} "
            f"tokens: {size_in_words(size)}, {self.bytes_per_row:.1f} bytes for each"
        )

    def _sample(self, number: int) -> Rows:
        shard, index = divmod(number, self.manifest["samples_per_shard"])
        file = self._opened(shard)
        row, pair = (slice(*file.get_slice(f"{name}_starts")[index : index + 2]) for name in ("row", "pair"))
        ids = file.get_slice("ids")[pair].astype(np.int32)
        if self.manifest["vocab_size"] > 1 << 16:
            ids += file.get_slice("ids_high")[pair].astype(np.int32) << 16
        return Rows(file.get_slice("lengths")[row], file.get_slice("entropy")[row], ids, file.get_slice("counts")[pair])

    def _open(self, shard: int) -> Any:
        return safe_open(self.folder / self.manifest["shards"][shard]["file"], framework="numpy")


def packed(rows: Sequence[Rows], vocab_size: int) -> dict[str, np.ndarray]:
    """The tensors of a shard, of its samples in order."""
    ids = np.concatenate([each.ids for each in rows])
    starts = {
        "row_starts": np.cumsum([0, *(len(each.lengths) for each in rows)], dtype=np.int64),
        "pair_starts": np.cumsum([0, *(len(each.ids) for each in rows)], dtype=np.int64),
    }
    high = {"ids_high": (ids >> 16).astype(np.uint8)} if vocab_size > 1 << 16 else {}
    return starts | high | {
        "lengths": np.concatenate([each.lengths for each in rows]).astype(np.uint8),
        "entropy": np.concatenate([each.entropy for each in rows]).astype(np.float16),
        "ids": (ids & 0xFFFF).astype(np.uint16),
        "counts": np.concatenate([each.counts for each in rows]).astype(np.uint8),
    }  # fmt: skip
