"""Seconds of a layer's attention and MLP by the number of units that are left: what the budget `latency` reads.

Small models with the first few layers are built at every width, without trained weights, and take turns like models of
`pat profile`. With T(a, m) the time at a KV heads and m neurons, of the same block, and k layers,

    attention(a) = median of (T(a, all) - T(0, all)) / k,   mlp(m) = median of (T(all, m) - T(all, 0)) / k,

and base = T(0, 0), embeddings and head; of a language model the head sees the last token only, as for a prompt.
Source: the latency tables of ZipLM, Kurtic et al. 2023, arXiv:2302.04089.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pat.common.parameters import DTYPES
from pat.export.loader import narrowed
from pat.models import families
from pat.models.anatomy import Anatomy, Attention
from pat.profiling import operations
from pat.profiling.backends import Stopwatch
from pat.profiling.measure import measure
from pat.profiling.plan import Plan, Work
from pat.pruning.budgets.latency import FORMAT, SIZES

LAYERS = 4  # of the models that are timed, at most: their time over the number of layers
POINTS = 8  # widths of a structure, at most

Widths = tuple[int, int]  # KV heads, neurons


def table(
    folder: Path,
    work: Work,
    device: str,
    device_name: str,
    dtype: str,
    blocks: int,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """The content of the file, for eager transformers; the folder has passed `check`."""
    config: Any = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    anatomy = families.anatomy(operations.on_meta(folder))
    full = _full(anatomy)
    assert full is not None
    few = min(LAYERS, len(anatomy.layers))
    variants = widths(full)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        runs = _runs(config, anatomy, few, variants, device, dtype)
    plan = Plan((Work(work.batch_size, work.prompt_tokens, 0),) * blocks, (), 0)
    samples = measure(plan, list(runs.values()), seed, 1, advance)
    seconds = {
        variant: one.whole(range(blocks)).mean(1) for variant, one in zip(runs, samples, strict=True)
    }  # (blocks,)
    return {
        "format": FORMAT,
        "model_type": anatomy.model_type,
        "model": {key: getattr(config.get_text_config(), key, None) for key in SIZES},
        "device": device_name,
        "dtype": dtype,
        "batch_size": work.batch_size,
        "tokens": work.prompt_tokens,
        "base_seconds": float(np.median(seconds[0, 0])),
        "kv_groups": _points(seconds, few, [(a, full[1]) for a in range(full[0] + 1)], 0),
        "ffn": _points(seconds, few, [(full[0], m) for m in range(full[1] + 1)], 1),
    }


def calls(full: Widths, blocks: int) -> int:
    """How many forwards `table` makes."""
    return len(widths(full)) * (1 + 2 * blocks)


def check(folder: Path, name: str) -> Widths:
    """(KV heads, neurons) of every layer. ValueError where layers differ, or pat does not know the family."""
    full = _full(families.anatomy(operations.on_meta(folder)))
    if full is None:
        raise ValueError(
            f"--table: the layers of {name} are not alike, and the table has one line for all: give a model whose "
            "layers are alike"
        )
    return full


def _full(anatomy: Anatomy) -> Widths | None:
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for _, _, sublayer in anatomy.sublayers:
        found[isinstance(sublayer, Attention)].add(sublayer.num_units)
    if any(len(sizes) != 1 for sizes in found.values()):
        return None
    return found[True].pop(), found[False].pop()


def widths(full: Widths) -> list[Widths]:
    """The timed widths: each structure at up to POINTS widths with the other whole, nothing at all, and everything."""
    heads, neurons = (_grid(count) for count in full)
    return list(dict.fromkeys([full, (0, 0), *((a, full[1]) for a in heads), *((full[0], m) for m in neurons)]))


def _grid(full: int) -> list[int]:
    """0 to `full`; of many, multiples of 64 where `full` is one, as kernels like them."""
    step = 64 if full % 64 == 0 and full >= 64 * POINTS else 1
    return sorted({round(full * i / POINTS / step) * step for i in range(POINTS + 1)})


def _runs(
    config: Any, anatomy: Anatomy, few: int, variants: list[Widths], device: str, dtype: str
) -> Mapping[Widths, Callable[[Work], list[float]]]:
    stock = getattr(transformers, config.architectures[0])
    smaller = families.drop_layers(config, anatomy, range(few))
    runs, embeddings = {}, None
    for variant in variants:
        own = copy.deepcopy(smaller)
        own.pat_widths = [
            {
                sublayer.name.removeprefix(f"{layer.name}."): variant[not isinstance(sublayer, Attention)]
                for sublayer in layer.sublayers
            }
            for layer in anatomy.layers[:few]
        ]
        model = narrowed(stock)(own).to(DTYPES[dtype]).to(device).eval().requires_grad_(False)
        if embeddings is None:
            embeddings = model.get_input_embeddings(), model.get_output_embeddings()
        else:  # they are large and equal in all of them
            model.set_input_embeddings(embeddings[0])
            if embeddings[1] is not None:
                model.set_output_embeddings(embeddings[1])
        runs[variant] = _forward(model, device)
    return runs


def _forward(model: Any, device: str) -> Callable[[Work], list[float]]:
    vocabulary = int(model.config.get_text_config().vocab_size)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    @torch.inference_mode()
    def run(work: Work) -> list[float]:
        generator = torch.Generator().manual_seed(work.prompt_tokens)
        ids = torch.randint(0, vocabulary, (work.batch_size, work.prompt_tokens), generator=generator).to(device)
        watch = Stopwatch(device)
        model(input_ids=ids, **last_only)
        watch.lap()
        return watch.laps

    return run


def _points(seconds: Mapping[Widths, Any], few: int, order: list[Widths], own: int) -> list[dict[str, float]]:
    """[{units, seconds}] of a layer, beginning with none."""
    timed = [variant for variant in order if variant in seconds]
    nothing = seconds[timed[0]]
    return [{"units": variant[own], "seconds": float(np.median(seconds[variant] - nothing)) / few} for variant in timed]
