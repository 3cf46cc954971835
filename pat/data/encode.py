"""Rows to samples on disk, in several processes. The samples do not depend on how many there are: a shard of rows has
an encoder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
from datasets import Dataset

from pat.common.progress_bar import progress_bar
from pat.data.rows import encoded, hash_of
from pat.tasks.base import Encoder

SHARD_ROWS = 10_000  # rows of a shard
POLL_S = 0.5  # between two looks at the progress of the processes


def processes(wanted: int | None, rows: int) -> int:
    """How many processes tokenise: as many as wanted (None: the cores that this process may use), at most one per
    shard."""
    return max(1, min(wanted or len(os.sched_getaffinity(0)), -(-rows // SHARD_ROWS)))


def encode(
    rows: Dataset,
    split: str,  # names the files: SPLIT*.arrow
    folder: Path,
    fresh: Callable[[], Encoder],  # makes a new encoder
    place: Callable[[int], str],  # where a row is, for errors
    num_proc: int | None = None,
) -> tuple[Dataset, Counter[str], str]:
    """The samples of all rows, in order, memory-mapped from files in `folder`; the encoders' summed counts; and, if
    there are no samples, why."""
    shards = Dataset.from_dict({"shard": list(range(-(-len(rows) // SHARD_ROWS)))})
    count, work = processes(num_proc, len(rows)), _Shard(rows, folder / f"{split}.counts", fresh, place)
    work.notes.mkdir()
    # Tokenizers have threads of their own, which several processes would start once each.
    threads = {"TOKENIZERS_PARALLELISM": "false"} if count > 1 else {}
    with mock.patch.dict(os.environ, threads), _progress(f"tokenising {split}", len(rows), work):
        samples = shards.map(
            work,
            batched=True,
            batch_size=1,
            num_proc=count if count > 1 else None,
            features=fresh().features(),
            remove_columns=shards.column_names,
            cache_file_name=str(folder / f"{split}.arrow"),
            load_from_cache_file=False,
            new_fingerprint=hash_of(folder.name, split),
        )
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in work.notes.glob("*.json")]
    shutil.rmtree(work.notes)
    counts: Counter[str] = Counter()
    for note in notes:
        counts.update(note["counts"])
    return samples, counts, notes[0]["why_none"]


def read(folder: Path, split: str) -> Dataset:
    """What `encode` wrote, from one file or from one of each process."""
    parts = [Dataset.from_file(str(path)) for path in sorted(folder.glob(f"{split}*.arrow"))]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


@dataclass(frozen=True)
class _Shard:
    """Encodes one shard; runs in any process."""

    rows: Dataset
    notes: Path  # folder of the counts, a file for each shard
    fresh: Callable[[], Encoder]
    place: Callable[[int], str]

    @property
    def done(self) -> Path:
        """A file with one byte for each call of an encoder."""
        return self.notes / "done"

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        (shard,) = batch["shard"]
        at, end, encoder = shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, len(self.rows)), self.fresh()
        made: dict[str, list[Any]] = {name: [] for name in encoder.features()}
        while at < end:
            stop = min(at + encoder.batch_rows, end)
            samples = encoded(encoder, self.rows[at:stop], self.fresh, lambda row, first=at: self.place(first + row))
            for name, values in samples.items():
                made[name] += [np.asarray(value) if isinstance(value, list) else value for value in values]
            at = stop
            with open(self.done, "ab") as file:
                file.write(b".")
        counts = {"tokens_left_over": encoder.left_over(), **encoder.counts()}
        note = {"counts": counts, "why_none": encoder.why_none()}
        (self.notes / f"{shard}.json").write_text(json.dumps(note))
        return made


@contextlib.contextmanager
def _progress(title: str, total: int, work: _Shard) -> Iterator[None]:
    """A bar that follows the calls of all processes."""
    each, ended = min(work.fresh().batch_rows, SHARD_ROWS), threading.Event()
    with progress_bar(title, total) as advance:
        seen = 0

        def look() -> None:
            nonlocal seen
            calls = work.done.stat().st_size if work.done.exists() else 0
            now = min(total, calls * each)
            advance(now - seen)
            seen = now

        def watch() -> None:
            while not ended.wait(POLL_S):
                look()

        thread = threading.Thread(target=watch, name="tokenising", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()
