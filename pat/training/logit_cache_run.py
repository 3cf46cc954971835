"""Makes a `distill.cache`: the teacher once over the training samples, in this process, a shard at a time.

What is drawn for a sample is a function of the seed, of the sample's number and of the teacher's logits. Batches never
reach beyond a shard, so that a cache that was stopped and goes on has the bytes of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pat.common import files
from pat.common.comm import LOCAL
from pat.common.hashing import file_sha256
from pat.common.progress_bar import progress_bar
from pat.common.seeds import mixed
from pat.data.prepare import PreparedData
from pat.data.sampler import token_counts
from pat.launch.process import only_user_of
from pat.models import build, tokenizers
from pat.schema import Config
from pat.tasks import base, chunked_loss
from pat.tasks.base import Batch, Task
from pat.tasks.causal_lm import CausalLM
from pat.training import teacher
from pat.training.distill import row_chunks
from pat.training.logit_cache import MANIFEST, MAX_DRAWS, LogitCache, Rows, made_for, packed
from pat.training.preflight import fitting_data
from pat.training.sampled_kl import counted, draw
from pat.zero.engine import accelerator, micro_batch_size

SHARD_TOKENS = 1 << 18  # of samples as long as data.max_length: some 10 MB, and what is lost when it is stopped

# b samples of a batch, s tokens, R rows of it that the loss counts, v vocabulary, K draws of a row


@dataclass(frozen=True)
class Source:
    """Whose answers to which samples."""

    model: Any
    task: Task
    tokenizer: PreTrainedTokenizerBase
    prepared: PreparedData
    temperature: float
    draws: int
    seed: int
    batch_size: int
    device: str


def make(config: Config, draws: int, shard_tokens: int = SHARD_TOKENS) -> LogitCache:
    """Draw what `distill.cache` does not hold yet.

    ValueError for a run that it cannot be made for, and where the folder holds another cache.
    """
    distill, task = config.distill, base.build(config.task)
    _check(config, task, draws)
    prepared = fitting_data(config.changed(distill__cache=None))
    tokenizer = tokenizers.build_tokenizer(config.model)
    student = build.build_config(config.model, task, prepared.num_labels, tokenizer, prepared.label_names)
    folder, each = Path(str(distill.cache)), max(1, shard_tokens // config.data.max_length)
    teacher.fetch(config)
    identity = made_for(config, task, tokenizer, prepared, student) | {
        "teacher": teacher.identity(config, LOCAL) | {"config_sha256": teacher.config_sha256(config)},
        "draws": draws,
        "seed": config.seed,
        "dtype": config.engine.dtype,
        "samples": len(prepared.train),
        "samples_per_shard": each,
    }
    with only_user_of(folder, "distill.cache", MANIFEST):
        manifest = _begun(folder, identity)
        if not manifest["complete"]:
            model = teacher.load(config, task, tokenizer, None).to(accelerator())
            options = (distill.temperature, draws, config.seed, micro_batch_size(config), accelerator())
            _fill(folder, manifest, Source(model, task, tokenizer, prepared, *options))
    return LogitCache(folder)


def _check(config: Config, task: Task, draws: int) -> None:
    if not 1 <= draws <= MAX_DRAWS:
        raise ValueError(f"--draws {draws}: give 1 to {MAX_DRAWS}")
    for key, what in (("teacher", "whose answers are drawn"), ("cache", "the folder to write")):
        if getattr(config.distill, key) is None:
            raise ValueError(f"distill.{key} is not set: give {what}")
    if not isinstance(task, CausalLM):
        raise ValueError(
            f"a cache of drawn answers is for language models (causal_lm, chat), not for task.name='{task.name}': its "
            "teacher has a few answers a sample, so let it run (distill.teacher alone)"
        )


def _begun(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a cache that goes on, with the shards that are as they were written; or a new one."""
    path = folder / MANIFEST
    if not path.exists():
        manifest = identity | {"complete": False, "rows": 0, "pairs": 0, "shards": []}
        files.write_json(path, manifest)
        return manifest
    manifest = files.read_json(path)
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} is damaged: remove the folder, or give another distill.cache")
    for key, value in identity.items():
        if manifest.get(key) != value:
            raise ValueError(
                f"distill.cache={folder} holds a cache with {key}={manifest.get(key)}, and this one would have "
                f"{value}: give another folder, or remove that one"
            )
    whole = 0
    for shard in manifest["shards"]:
        file = folder / shard["file"]
        if not file.is_file() or file_sha256(file) != shard["sha256"]:
            break
        whole += 1
    return manifest if whole == len(manifest["shards"]) else _shortened(manifest, whole)


def _shortened(manifest: dict[str, Any], whole: int) -> dict[str, Any]:
    """The same with its first shards only."""
    kept = manifest["shards"][:whole]
    sums = {key: sum(shard[key] for shard in kept) for key in ("rows", "pairs")}
    return manifest | sums | {"complete": False, "shards": kept}


def _fill(folder: Path, manifest: dict[str, Any], source: Source) -> None:
    """Write the shards that are missing, and the manifest after each."""
    each, total = manifest["samples_per_shard"], manifest["samples"]
    first = len(manifest["shards"])
    with progress_bar("drawing", total, min(first * each, total)) as advance:
        for number in range(first, -(-total // each)):
            samples = range(number * each, min((number + 1) * each, total))
            rows = drawn(source, samples, advance)
            content = save(packed(rows, manifest["vocab_size"]))
            name = f"shard-{number:05d}.safetensors"
            files.write_atomic(folder / name, content)
            sizes = {"rows": sum(len(one.lengths) for one in rows), "pairs": sum(len(one.ids) for one in rows)}
            hashed = {"file": name, "bytes": len(content), "sha256": sha256(content).hexdigest()}
            manifest["shards"].append(hashed | sizes)
            manifest |= {key: manifest[key] + size for key, size in sizes.items()}
            manifest["complete"] = samples.stop == total
            files.write_json(folder / MANIFEST, manifest)


def drawn(source: Source, samples: range, advance: Callable[[int], None]) -> list[Rows]:
    """The rows of each of these samples, in order. The teacher gets them sorted by length, which saves padding."""
    lengths = token_counts(source.prepared.train.select(samples))
    order = [samples[int(place)] for place in np.argsort(-lengths, kind="stable")]
    found: dict[int, Rows] = {}
    for start in range(0, len(order), source.batch_size):
        chosen = order[start : start + source.batch_size]
        found |= zip(chosen, _of_batch(source, chosen), strict=True)
        advance(len(chosen))
    return [found[number] for number in samples]


def _of_batch(source: Source, chosen: Sequence[int]) -> Iterator[Rows]:
    """The rows of each sample of a batch."""
    batch = source.task.collate(source.prepared.train[list(chosen)], source.tokenizer)
    mask = source.task.supervised(batch).bool()  # (b, s)
    numbers = mask.sum(1).tolist()
    uniform = torch.cat([_uniform(source, sample, rows) for sample, rows in zip(chosen, numbers, strict=True)])
    places = mask.flatten().nonzero()[:, 0].to(source.device)  # (R,) of the b s rows
    batch = {name: tensor.to(source.device) for name, tensor in batch.items()}
    ids, entropy = _drawn_by_teacher(source, batch, places, uniform.to(source.device))
    if not bool(entropy.isfinite().all()):
        raise ValueError(f"the teacher's logits of samples {list(chosen)} are not finite: try engine.dtype=fp32")
    for own, nats in zip(ids.split(numbers), entropy.split(numbers), strict=True):
        arrays = (tensor.cpu().numpy() for tensor in counted(own))
        lengths, tokens, counts = arrays
        yield Rows(lengths, nats.cpu().numpy(), tokens.astype(np.int32), counts)


def _uniform(source: Source, sample: int, rows: int) -> Tensor:
    """(rows, K) fp64 in [0, 1): the same whatever else is in the batch."""
    generator = torch.Generator().manual_seed(mixed(source.seed, sample))
    return torch.rand(rows, source.draws, dtype=torch.float64, generator=generator)


def _drawn_by_teacher(source: Source, batch: Batch, places: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K) tokens and (R,) entropies, from logits of all tokens, or of task.loss_chunk_tokens at a time."""
    parts: list[tuple[Tensor, Tensor]] = []

    def take(logits: Tensor, part: slice) -> None:
        inside = (places >= part.start) & (places < part.stop)
        parts.append(draw(logits[places[inside] - part.start], source.temperature, uniform[inside]))

    def inside_head(head: chunked_loss.Head, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, 1)
        for part in chunked_loss.chunks(len(flat), source.task.chunk_tokens or 1):
            take(head.own(flat[part]), part)
        return hidden

    with torch.no_grad():
        if source.task.chunk_tokens is None:
            logits = source.task.outputs(source.model, batch).logits.flatten(0, 1)
            for part in row_chunks(logits):
                take(logits[part], part)
        else:
            with chunked_loss.at_head(source.model, inside_head):
                source.task.outputs(source.model, batch)
    ids, entropy = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(entropy)
