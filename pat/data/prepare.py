"""Tokenised samples for training, evaluation and calibration, memory-mapped from a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from pat.data import entry, slices, sources
from pat.data.columns import place_of, select_columns
from pat.data.encode import encode, read
from pat.data.mixture import Mixture
from pat.data.rows import SLICE, blank, content_hashes, hash_of, held_out
from pat.data.sampler import token_counts
from pat.models.tokenizers import tokenizer_digest
from pat.schema import DataConfig
from pat.tasks.base import Task

SPLITS = ("train", "eval")
CALIBRATION = "calibration"
HASHES = {"train": "train.rows.npy", "eval": "eval.rows.npy"}  # of rows: sorted, and in their order without blank ones
IN_STEP = 8  # rows by which numbers that are spread evenly get out of step with a period of the data, at least


class NoSamples(ValueError):
    """Rows of which no sample can be made."""


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and is evaluated on."""

    train: Dataset
    eval: Dataset
    num_labels: int | None
    label_names: list[str] | None
    info: dict[str, Any]  # counts of rows, samples and tokens; `cache`, the entry; `built`, whether this call made it
    mixture: Mixture | None = None  # how often each of several sources is seen
    origin: tuple[tuple[str, int], ...] = ()  # of each source: its cache entry's key, training samples taken of it
    slices: list[tuple[str, ...]] | None = None  # DIMENSION=VALUE of each evaluation sample; None: the data names none
    calibration: Dataset | None = None  # of data.calibration; None: the first training samples calibrate
    calibration_key: str | None = None  # of its cache entry

    def to_calibrate(self) -> int:
        """How many samples there are for calibrated methods."""
        return len(self.train if self.calibration is None else self.calibration)


def prepare(cfg: DataConfig, tokenizer: PreTrainedTokenizerBase, task: Task, seed: int = 0) -> PreparedData:
    """The samples that `cfg` describes, from the cache or put there now. `seed` makes generated text, nothing else.

    Not collective: every rank may call it at any time; one builds, the others wait for its lock.
    """
    sources.check(cfg)
    if cfg.source == sources.MIXTURE:
        return _mixed(cfg, tokenizer, task, seed)
    root = entry.root(cfg)
    # The folder's name says everything that decides what is in it.
    key = hash_of(
        entry.FORMAT,
        repr(task),
        task.columns(cfg),
        cfg.max_length,
        cfg.max_train_samples,
        tokenizer_digest(tokenizer),
        sources.digest(cfg, "train", seed, root / "digests"),
        sources.digest(cfg, "eval", seed, root / "digests") if cfg.eval else cfg.eval_fraction,
        *([cfg.slice_column] if cfg.slice_column else []),
        *(["labels by name"] if cfg.eval and task.labelled else []),  # earlier entries may have them by number
    )
    folder = root / "data" / key
    built = entry.filled(folder, lambda staging: _build(staging, cfg, tokenizer, task, seed))
    info = entry.info(folder)
    names = info["label_names"]
    train, held = (read(folder, split) for split in SPLITS)
    train = _spread(train, cfg.max_train_samples)  # of that many rows, which may have made more samples
    few = _few(len(held), cfg.max_eval_samples)
    named = slices.of_samples(info["slices"], cfg.slice_column) if cfg.slice_column else None
    calibration = _calibration(root, cfg, tokenizer, task, seed, names) if cfg.calibration else (None, None)
    return PreparedData(
        train=train,
        eval=held if few is None else held.select(few),
        num_labels=len(names) if names is not None else None,
        label_names=names,
        info={"built": built, "cache": str(folder), **info["counts"]},
        origin=((key, len(train)),),
        slices=named if named is None or few is None else [named[i] for i in few],
        calibration_key=calibration[0],
        calibration=calibration[1],
    )


def _calibration(
    root: Path,
    cfg: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    seed: int,
    names: list[str] | None,
) -> tuple[str, Dataset]:
    """An entry's key and samples, those of data.calibration; `names` are the classes of the training data."""

    def build(staging: Path) -> dict[str, Any]:
        loaded = sources.load(cfg, CALIBRATION, seed, staging / "raw")
        columns = task.columns_in(cfg, loaded.column_names)
        rows = select_columns(loaded, columns, cfg, CALIBRATION, task.by_word)
        splits = {CALIBRATION: rows}
        if names is not None:
            as_trained: list[Any] = list(range(len(names))) if names == [str(i) for i in range(len(names))] else names
            splits["train"] = Dataset.from_dict({"label": as_trained})
        rows = task.with_words(splits)[CALIBRATION]
        datasets.disable_progress_bars()  # what follows has its own bar
        place = partial(_place, cfg, CALIBRATION, np.arange(len(rows)))
        return {"counts": _encode(rows, CALIBRATION, CALIBRATION, staging, cfg, tokenizer, task, names, place)}

    digest = sources.digest(cfg, CALIBRATION, seed, root / "digests")
    decides = (repr(task), task.columns(cfg), cfg.max_length, tokenizer_digest(tokenizer), digest, names)
    key = hash_of(entry.FORMAT, CALIBRATION, *decides)
    folder = root / "data" / key
    entry.filled(folder, build)
    return key, read(folder, CALIBRATION)


def _mixed(cfg: DataConfig, tokenizer: PreTrainedTokenizerBase, task: Task, seed: int) -> PreparedData:
    """Each of data.sources, prepared by itself and concatenated."""
    mixed = sources.of_mixture(cfg)
    made: dict[str, PreparedData] = {}
    for name, (part, _) in mixed.items():
        try:
            made[name] = prepare(part, tokenizer, task, seed)
        except ValueError as error:
            raise ValueError(f"data.sources.{name}: {error}") from error
    first, *others = made.values()
    if any(other.label_names != first.label_names for other in others):
        labels = "; ".join(f"{name}: {one.label_names}" for name, one in made.items())
        raise ValueError(f"The sources must have the same labels, but have {labels}.")
    infos = [one.info for one in made.values()]
    counts = {key: sum(info.get(key, 0) for info in infos) for key in dict.fromkeys(k for i in infos for k in i)
              if key not in ("built", "cache")}  # fmt: skip
    entries = [Path(info["cache"]) for info in infos]
    if all((folder / HASHES["train"]).is_file() for folder in entries):  # entries of earlier versions have none
        counts["eval_rows_in_train"] = _eval_rows_in_train(entries)
    return PreparedData(
        train=datasets.concatenate_datasets([one.train for one in made.values()]),
        eval=datasets.concatenate_datasets([one.eval for one in made.values()]),
        num_labels=first.num_labels,
        label_names=first.label_names,
        info={
            "built": any(info["built"] for info in infos),
            "cache": ", ".join(info["cache"] for info in infos),
            **counts,
        },
        mixture=Mixture(tuple(len(one.train) for one in made.values()), tuple(weight for _, weight in mixed.values())),
        origin=tuple(pair for one in made.values() for pair in one.origin),
        slices=_slices_of_mixture(made),
    )


def _held_out(train: Dataset, hashes: np.ndarray, fraction: float) -> np.ndarray:
    """(rows,) bool; the empty lines between paragraphs are no rows to be held out."""
    held = ~blank(train)
    if held.any():
        held[held] = held_out(hashes[held], fraction)
        return held
    return held_out(hashes, fraction)


def _eval_rows_in_train(entries: Sequence[Path]) -> int:
    """How many evaluation rows of these entries are training rows of any of them."""
    held = np.concatenate([np.load(folder / HASHES["eval"]) for folder in entries])
    found = np.zeros(len(held), dtype=bool)
    for folder in entries:
        rows = np.load(folder / HASHES["train"], mmap_mode="r")
        found |= rows[np.minimum(np.searchsorted(rows, held), len(rows) - 1)] == held
    return int(found.sum())


def _slices_of_mixture(made: Mapping[str, PreparedData]) -> list[tuple[str, ...]]:
    """Each sample's source, and its slices there; where those name the source themselves, only they are used."""
    named = [(f"source={name}", each) for name, one in made.items() for each in one.slices or [()] * len(one.eval)]
    theirs = any(each.startswith("source=") for _, all_ in named for each in all_)
    return [all_ if theirs else (source, *all_) for source, all_ in named]


def _build(staging: Path, cfg: DataConfig, tokenizer: PreTrainedTokenizerBase, task: Task, seed: int) -> dict[str, Any]:
    """Tokenise both splits into the folder `staging`; what is to be known about them."""
    rows = {}
    for split in SPLITS if cfg.eval else SPLITS[:1]:
        loaded = sources.load(cfg, split, seed, staging / "raw")
        columns = task.columns_in(cfg, loaded.column_names)
        if cfg.slice_column and (split == "eval" or not cfg.eval):
            columns = {**columns, SLICE: cfg.slice_column}
        rows[split] = select_columns(loaded, columns, cfg, split, task.by_word)
    rows = task.with_words(rows)
    names = task.label_names(rows["train"])
    counts: dict[str, int] = {} if names is None else {"labelled_rows": len(rows["train"])}
    hashes = {split: content_hashes(part) for split, part in rows.items()}
    numbers = {split: np.arange(len(part)) for split, part in rows.items()}
    if not cfg.eval:
        held = _held_out(rows["train"], hashes["train"], cfg.eval_fraction)
        numbers = {"train": np.flatnonzero(~held), "eval": np.flatnonzero(held)}
        rows = {split: rows["train"].select(chosen) for split, chosen in numbers.items()}
        hashes = {split: hashes["train"][chosen] for split, chosen in numbers.items()}
    np.save(staging / HASHES["train"], np.unique(hashes["train"]))
    np.save(staging / HASHES["eval"], hashes["eval"][~blank(rows["eval"])])
    if cfg.eval:
        counts["eval_rows_in_train"] = _eval_rows_in_train([staging])
    if cfg.max_train_samples is not None and cfg.max_train_samples < len(rows["train"]):
        few = _evenly(cfg.max_train_samples, len(rows["train"]))
        numbers["train"], rows["train"] = numbers["train"][few], rows["train"].select(few)
    datasets.disable_progress_bars()  # what follows has its own bar
    held = slices.rows_of(rows["eval"], cfg.slice_column) if cfg.slice_column else {"": None}
    made: list[tuple[str, int]] = []  # of each slice
    for split, part in rows.items():
        part = part.remove_columns(SLICE) if SLICE in part.column_names else part
        origin = split if cfg.eval else "train"  # whose rows the numbers count
        for name, chosen in held.items() if split == "eval" else [("", None)]:
            few, places = (part, numbers[split]) if chosen is None else (part.select(chosen), numbers[split][chosen])
            file = split if chosen is None else f"{split}.{len(made):04}"
            place = partial(_place, cfg, origin, places)
            try:
                found = _encode(few, split, file, staging, cfg, tokenizer, task, names, place)
            except NoSamples as error:
                which = f"Of the slice {name} (data.slice_column): " if chosen is not None else ""
                raise ValueError(f"{which}{error}") from error
            counts |= {key: counts.get(key, 0) + count for key, count in found.items()}
            made += [(name, found["eval_samples"])] if split == "eval" else []
    return {"label_names": names, "counts": counts, "slices": made}


def _encode(
    rows: Dataset,
    split: str,
    file: str,
    staging: Path,
    cfg: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    names: list[str] | None,
    place: Callable[[int], str],
) -> dict[str, int]:
    """Write FILE*.arrow and return its counts."""
    fresh = partial(task.encoder, tokenizer, cfg.max_length, names)
    samples, counts, why_none = encode(rows, file, staging, fresh, place, cfg.num_proc)
    if len(samples) == 0:
        raise NoSamples(
            f"The {len(rows)} rows of data.{split} make no sample of data.max_length={cfg.max_length}: "
            f"{why_none}" + (", or a larger eval_fraction." if split == "eval" and not cfg.eval else ".")
        )
    return {
        f"{split}_rows": len(rows),
        f"{split}_samples": len(samples),
        f"{split}_tokens": int(token_counts(samples).sum()),
        **{f"{split}_{name}": count for name, count in counts.items()},
    }


def _place(cfg: DataConfig, split: str, numbers: np.ndarray, row: int) -> str:
    """The place in data.train, data.eval or data.calibration of the row that was number `numbers[row]` there."""
    return place_of(cfg, split, int(numbers[row]))


def _spread(samples: Dataset, limit: int | None) -> Dataset:
    """At most `limit` samples, spread evenly: data is often sorted by label or by date."""
    few = _few(len(samples), limit)
    return samples if few is None else samples.select(few)


def _few(total: int, limit: int | None) -> np.ndarray | None:
    """The numbers of at most `limit` of `total` samples; None: all."""
    return None if limit is None or limit >= total else _evenly(limit, total)


def _evenly(count: int, of: int) -> np.ndarray:
    """(count,) rising numbers below `of`, spread evenly.

    At a distance that is a whole number, or nearly, they would be in step with rows that repeat: labels that take
    turns, the answers to one question. There each number is drawn from its stretch.
    """
    first = np.arange(count) * of // count
    if min(of % count, -of % count) >= min(IN_STEP, count // 4):
        return first
    return np.random.default_rng([count, of]).integers(first, np.append(first[1:], of))
