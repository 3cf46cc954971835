"""Where rows come from: a hub data set, local files, or the generator; and a digest that changes when they do."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, load_dataset
from datasets.arrow_writer import SchemaInferenceError
from huggingface_hub import constants, snapshot_download

from pat.common import ignored
from pat.common.text import did_you_mean
from pat.data import delimited
from pat.data.generated import generate
from pat.schema import ENDINGS, FILES, DataConfig, GeneratedConfig

MIXTURE = "mixture"  # of the sources in data.sources
OUR_SLICES = ("label", "form")  # `pat.evaluation.samples.Parts` makes them
RACY_S = 2.0  # a file younger than this may change again within its time stamp


def check(cfg: DataConfig) -> None:
    """Values that are not allowed, and keys that this source would ignore, are ValueErrors."""
    for problem in ignored.of_section(cfg, "data"):
        raise ValueError(problem)
    for key in ("train", "eval", "calibration"):
        given = getattr(cfg, key)
        names = given if isinstance(given, list) else [given]
        if given is None and key != "train":
            continue
        if not (names and all(isinstance(name, str) and name for name in names)):
            raise ValueError(f"data.{key}={given} must be a split, a path, a glob, or a list of paths: give one.")
    delimited.check(cfg)
    if cfg.slice_column in OUR_SLICES:
        raise ValueError(
            f"data.slice_column={cfg.slice_column} is a slice of every data set already: rename the column."
        )


def of_mixture(cfg: DataConfig) -> dict[str, tuple[DataConfig, float]]:
    """(config, weight) of each of data.sources: keys that it does not set are those of `data`. Raises ValueError."""
    if not cfg.sources:
        raise ValueError("data.source=mixture needs data.sources: {NAME: {source: ..., weight: 1.0}, ...}.")
    common = ("sources", "generated", "calibration", "max_length", "cache_dir", "num_proc")  # of all of them
    allowed = ["weight", *(key for key in DataConfig.model_fields if key not in common)]
    configs = {}
    for name, given in cfg.sources.items():
        fields = dict(given)
        unknown = [key for key in fields if key not in allowed]
        if unknown:
            raise ValueError(f"data.sources.{name} has no key '{unknown[0]}': allowed are {', '.join(allowed)}.")
        weight = fields.pop("weight", 1.0)
        if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"data.sources.{name}.weight={weight} must be above 0.")
        if fields.get("source") in (None, MIXTURE):
            raise ValueError(f"data.sources.{name} must say its source: a hub name, {', '.join(FILES)}, or generated.")
        generated = cfg.generated if fields["source"] == "generated" else GeneratedConfig()
        try:
            configs[name] = cfg.changed(sources=None, generated=generated, **fields), float(weight)
        except ValueError as error:
            raise ValueError(f"data.sources.{name}.{error}") from error
    return configs


def parts(cfg: DataConfig) -> dict[str, DataConfig]:
    """The config of each source, by what its keys begin with. Raises ValueError."""
    if cfg.source != MIXTURE:
        return {"data.": cfg}
    return {f"data.sources.{name}.": part for name, (part, _) in of_mixture(cfg).items()}


def held_out_of_train(cfg: DataConfig) -> bool:
    """Whether no evaluation data is given, by any source."""
    return all(part.train and not part.eval for part in parts(cfg).values())


def digest(cfg: DataConfig, split: str, seed: int, memory: Path) -> str:
    """A digest of the rows of a split (train, eval, calibration), from contents, not names or dates of files.

    `memory` is a folder in which the digests of files are remembered by their size and time of change.
    """
    if cfg.source == "generated":
        return json.dumps(["generated", seed, cfg.generated.plain()])
    if cfg.source in FILES:
        how = [cfg.sample_by, cfg.delimiter, cfg.quote_char, cfg.encoding]
        contents = [
            _file_digest(path, memory) + ", with tabs" * delimited.is_tsv(path, cfg) for path in files(cfg, split)
        ]
        return json.dumps([cfg.source, how, contents])
    return json.dumps(["hub", cfg.source, cfg.subset, load(cfg, split, seed, None)._fingerprint])


def load(cfg: DataConfig, split: str, seed: int, staging: Path | None) -> Dataset:
    """All rows of a split (train, eval, calibration), memory-mapped; those of local files are copied to `staging`."""
    if cfg.source == "generated":
        return Dataset.from_list(list(generate(cfg.generated, seed)))
    if cfg.source not in FILES:
        return _hub(cfg, getattr(cfg, split))
    paths = files(cfg, split)
    if cfg.source == "csv":
        assert staging is not None
        try:
            lines = delimited.load(paths, cfg, staging / f"{split}.rows")
        except ValueError as error:
            if "data.source=" in str(error) or not (hint := _named_otherwise(paths, cfg)):
                raise
            raise ValueError(f"{error}{hint}") from error
        if not lines.column_names:
            raise without_rows(cfg, split)
        return lines
    options: dict[str, Any] = {}
    if cfg.source == "text":
        options = {"sample_by": cfg.sample_by, "encoding": delimited.marked(cfg.encoding)}
    elif cfg.source == "json":
        options = {"encoding": cfg.encoding}
    # In the staging folder, not in the cache of `datasets`: that one trusts the files' dates.
    rows: Any
    named = [glob.escape(path) for path in paths]  # `datasets` takes each for a glob
    try:
        rows = load_dataset(cfg.source, data_files=named, split="train", cache_dir=str(staging), **options)
    except Exception as error:  # any of a dozen parsers' own
        cause = error.__cause__ or error
        if isinstance(cause, StopIteration | SchemaInferenceError) or "corresponds to no data" in str(cause):
            raise without_rows(cfg, split) from None
        if isinstance(cause, UnicodeError) and "encoding" in options:
            raise _not_encoded(cfg, split) from error
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        if "because column names don't match" in str(cause):
            first = "its files, or the parts of one, have different columns; give them the same"
        raise ValueError(
            f"data.{split}={getattr(cfg, split)} cannot be read as {cfg.source}: {first}{_named_otherwise(paths, cfg)}"
        ) from error
    if cfg.source == "json":
        _check_encoding(rows, cfg, split)
    return rows


def _named_otherwise(paths: list[str], cfg: DataConfig) -> str:
    """What to add to an error of files whose names end as those of another source; else nothing."""
    for end in (Path(path).suffix for path in paths):
        if ENDINGS.get(end.lower(), cfg.source) not in (cfg.source, "text"):
            return f" (its name ends in {end}: set data.source={ENDINGS[end.lower()]})"
    return ""


def _check_encoding(rows: Dataset, cfg: DataConfig, split: str) -> None:
    """ValueError for text that is not what Arrow takes it for."""
    try:
        rows.data.table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _not_encoded(cfg, split) from error


def _not_encoded(cfg: DataConfig, split: str) -> ValueError:
    return ValueError(
        f"data.{split}={getattr(cfg, split)} is not {cfg.encoding}: set data.encoding, as data.encoding=latin-1."
    )


def files(cfg: DataConfig, split: str) -> list[str]:
    """The files that a path, a glob, or a list of these names, sorted within each; none is a ValueError."""
    spec = getattr(cfg, split)
    named: list[str] = []
    for pattern in [spec] if isinstance(spec, str) else list(spec):
        expanded = os.path.expanduser(pattern)
        paths = [expanded]
        if not os.path.isfile(expanded):  # a name with [brackets] is a file first and a glob second
            paths = sorted(filter(os.path.isfile, glob.glob(expanded, recursive=True)))
        if not paths and split == pattern == DataConfig.model_fields["train"].default:
            raise ValueError(f"data.train is not given: data.source={cfg.source} needs data.train=FILE.")
        if not paths:
            raise ValueError(f"data.{split}: no file matches '{pattern}' (seen from {os.getcwd()}).")
        named += paths
    twice = [path for path, times in Counter(map(os.path.realpath, named)).items() if times > 1]
    if twice:
        raise ValueError(f"data.{split}={spec} names {twice[0]} twice, so its rows would count twice: name it once.")
    return named


def check_files(cfg: DataConfig) -> None:
    """ValueError for a file that is not there, of any source: at once, before anything is read."""
    for name, (each, _) in of_mixture(cfg).items() if cfg.source == MIXTURE else ():
        try:
            check_files(each)
        except ValueError as error:
            raise ValueError(f"data.sources.{name}: {error}") from error
    for split in ("train", "eval", "calibration") if cfg.source in FILES else ():
        if getattr(cfg, split) is not None:
            files(cfg, split)


def without_rows(cfg: DataConfig, split: str) -> ValueError:
    """What to say of a split that is empty."""
    return ValueError(f"data.{split}={getattr(cfg, split)} of data.source={cfg.source} has no rows.")


def _hub(cfg: DataConfig, split: Any) -> Dataset:
    hint = "" if "/" in cfg.source else did_you_mean(cfg.source, [*FILES, "generated", "mixture"])
    if hint:
        raise ValueError(f"There is no data.source='{cfg.source}'{hint}")
    looks_local = cfg.source.startswith((".", "/", "~")) or cfg.source.count("/") > 1
    if looks_local and not os.path.isdir(cfg.source):
        raise ValueError(f"There is no folder data.source='{cfg.source}' (seen from {os.getcwd()}).")
    rows: Any
    split = split if isinstance(split, str) else "+".join(split)
    try:
        try:
            rows = load_dataset(cfg.source, cfg.subset, split=split, revision=cfg.revision)
        except Exception:
            downloaded = _snapshot(cfg)
            if downloaded is None:
                raise
            rows = load_dataset(downloaded, cfg.subset, split=split)
    except Exception as error:  # a dozen kinds: unknown subset or split, no such data set, no network
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"data.source='{cfg.source}' (subset {cfg.subset}, split {split}) could not be loaded; it must be a hub "
            f"data set, a folder, generated, or one of {', '.join(FILES)}: {first}"
        ) from error
    return rows


def _snapshot(cfg: DataConfig) -> str | None:
    """The data set's folder in the local cache of the hub, which `datasets` does not look at by itself when offline."""
    if os.path.isdir(cfg.source) or not constants.is_offline_mode():
        return None
    try:
        return snapshot_download(cfg.source, repo_type="dataset", revision=cfg.revision, local_files_only=True)
    except (OSError, ValueError):  # not there, or no name of the hub
        return None


def _file_digest(path: str, memory: Path) -> str:
    """sha256 of a file, remembered in `memory` by path, size and time of change: ranks do not all read 100 GB again."""
    real = os.path.realpath(path)
    stat = os.stat(real)
    stamp = [real, stat.st_size, stat.st_mtime_ns, stat.st_ino]
    note = memory / f"{hashlib.sha256(real.encode()).hexdigest()[:32]}.json"
    try:
        remembered = json.loads(note.read_text(encoding="utf-8"))
        if remembered["stamp"] == stamp:
            return remembered["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or torn: it is only a memory
    with open(real, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - stat.st_mtime > RACY_S:
        with contextlib.suppress(OSError):  # a cache that others fill and that is read only here
            memory.mkdir(parents=True, exist_ok=True)
            part = note.with_suffix(f".{uuid.uuid4().hex[:8]}")  # ranks in containers have equal pids
            part.write_text(json.dumps({"stamp": stamp, "sha256": sha256}))
            part.replace(note)
    return sha256
