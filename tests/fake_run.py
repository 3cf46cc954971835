"""A run directory with a checkpoint in DeepSpeed's format, written without DeepSpeed and without ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from pat.common.hashing import file_sha256, pack_keep
from pat.models import config_files

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class FakeCheckpoint:
    """What was written, by parameter name; flat fp32 tensors."""

    dir: Path
    weight: dict[str, Tensor] = field(default_factory=dict)  # effective, as the fp32 shards hold it
    exp_avg: dict[str, Tensor] = field(default_factory=dict)
    keep: dict[str, Tensor] = field(default_factory=dict)
    score: dict[str, Tensor] = field(default_factory=dict)
    frozen: dict[str, Tensor] = field(default_factory=dict)


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    ranks: int = 3,
    layout: str = "zero12",
    prune: str = "*_proj.weight",
    frozen: str = "",
    dtype: str = "bf16",
    step: int = 20,
    cut: int = 0,  # zero12: the boundaries between ranks are moved by so many elements
    gates: Mapping[str, tuple[dict[str, Tensor], dict[str, Any]]]
    | None = None,  # a pruner's tensors, and its shared state
) -> FakeCheckpoint:
    """Cut the model's parameters over ranks, with moments, masks (about 70 % removed) and scores.

    Frozen are those that do not train, and those that `frozen` names.
    """
    gates = gates or {}
    generator = torch.Generator().manual_seed(step)
    saved = FakeCheckpoint(folder)
    (folder / "deepspeed").mkdir(parents=True)
    parameters, groups = [], ([], [])
    for name, param in model.named_parameters():
        is_frozen = not param.requires_grad or (bool(frozen) and fnmatch(name, frozen))
        pruner = "weights" if fnmatch(name, prune) and param.dim() == 2 and not is_frozen else None
        value = param.detach().float().reshape(-1).clone()
        if pruner:
            saved.keep[name] = (torch.rand(len(value), generator=generator) > 0.7).to(torch.uint8)
            saved.score[name] = torch.randn(len(value), generator=generator)
            value = value * saved.keep[name]  # leaves -0.0 behind, as in training
        if is_frozen:
            saved.frozen[name] = value.to(DTYPES[dtype])
        else:
            saved.weight[name] = value
            saved.exp_avg[name] = torch.randn(len(value), generator=generator)
            groups[param.dim() > 1].append(name)
        shape = list(param.shape)
        fields = {"dtype": str(DTYPES[dtype])[6:], "trainable": not is_frozen, "pruner": pruner}
        parameters.append({"name": name, "shape": shape, **fields})
    shapes = {p["name"]: p["shape"] for p in parameters}
    persistent = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}

    layouts = []
    for rank in range(ranks):
        segments: list[dict[str, Any]] = []
        weights, moments = [], []
        for shard, names in enumerate(groups):
            pieces = _pieces(names, saved.weight, rank, ranks, layout, cut)
            offset = 0
            for name, start, numel, width in pieces:
                if numel:
                    at = {"start": start, "numel": numel, "shard": shard, "offset": offset}
                    segments.append({"name": name, "shape": shapes[name], **at})
                offset += width
            weights.append(_flat(saved.weight, pieces))
            moments.append(_flat(saved.exp_avg, pieces))
        state = {
            i: {"step": torch.tensor(float(step)), "exp_avg": m, "exp_avg_sq": m * m} for i, m in enumerate(moments)
        }
        base = {"state": state, "param_groups": [{"lr": 0.1, "params": [i]} for i in range(len(groups))]}
        if layout == "zero3":
            content = {"fp32_flat_groups": weights, "optimizer_state_dict": base}
        else:
            content = {"single_partition_of_fp32_groups": weights, "base_optimizer_state": base}
        name = f"{'bf16_' if dtype == 'bf16' else ''}zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": content}, folder / "deepspeed" / f"{name}_optim_states.pt")
        pruner_file = f"pruner-{rank:05d}-of-{ranks:05d}.safetensors"
        tensors = {f"{n}|gate|{k}": v for n, (state, _) in gates.items() for k, v in state.items() if rank == 0}
        for s in segments:
            if s["name"] in saved.keep:
                part = slice(s["start"], s["start"] + s["numel"])
                key = f"{s['name']}|{s['start']}"
                tensors[f"weights|keep|{key}"] = torch.from_numpy(pack_keep(saved.keep[s["name"]][part]))
                tensors[f"weights|score|{key}"] = saved.score[s["name"]][part].clone()
        save_file(tensors, folder / pruner_file, metadata={"format": "1"})
        layouts.append({"rank": rank, "shards": [], "segments": segments, "pruner_file": pruner_file})
        if layout == "zero3" or rank == 0:
            _write_model_states(folder, saved, shapes, buffers, rank, ranks, layout, dtype)

    files = [path for path in folder.rglob("*") if path.is_file()]
    manifest = {
        "format": 1,
        "step": step,
        "phase": {name: "hard" for name in gates or ("weights",)},
        "world_size": ranks,
        "zero_stage": 3 if layout == "zero3" else 2,
        "dtype": dtype,
        "layout": layout,
        "parameters": parameters,
        "tied": {
            name: next(n for n, p in model.named_parameters() if p is param)
            for name, param in model.named_parameters(remove_duplicate=False)
            if name not in shapes
        },
        "ranks": layouts,
        "files": {
            str(path.relative_to(folder)): {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files
        },
        "metrics": {"loss": 1.5},
        "trainer": {
            "dense_metrics": {"loss": 1.25},
            "dense_step": 5,
            "pruners": {n: shared for n, (_, shared) in gates.items()},
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return saved


def write_run(
    run_dir: Path,
    model: Any,
    tokenizer: Any,
    task: str,
    steps: tuple[int, ...] = (10, 20),
    settings: Mapping[str, Any] | None = None,  # of the config, in place of a weight pruner
    **kwargs: Any,
) -> list:
    """A run directory around checkpoints of `steps`; the first is the best, the last the latest."""
    run_dir.mkdir(parents=True)
    config_files.write(model, run_dir / "model")
    tokenizer.save_pretrained(run_dir / "tokenizer")
    pruner = {
        "params": ["*_proj.weight"],
        "granularity": "weight",
        "criterion": "movement",
        "budget": {"name": "sparsity", "sparsity": 0.7},
        "schedule": {"name": "cubic", "start": 2, "end": 8},
    }
    config = {
        "run": {"name": "fake", "dir": str(run_dir)},
        "model": {"init": "random", "config": {"model_type": model.config.model_type}},
        "data": {"source": "generated", "max_length": 8},
        "task": {"name": task},
        "train": {"num_steps": 20, "global_batch_size": 8, "micro_batch_size": 4},
        "optim": {"lr": 1e-3},
        **(settings or {"pruners": {"weights": pruner}}),
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    root = run_dir / "checkpoints"
    saved = [write_checkpoint(root / f"step-{step:08d}", model, step=step, **kwargs) for step in steps]
    (root / "best").write_text(saved[0].dir.name)
    (root / "latest").write_text(saved[-1].dir.name)
    return saved


def _pieces(names: list[str], values: dict[str, Tensor], rank: int, ranks: int, layout: str, cut: int) -> list[tuple]:
    """(name, start, numel, width in the shard) of this rank's part of a param group."""
    if layout == "zero3":
        found = []
        for name in names:
            width = math.ceil(len(values[name]) / ranks)
            found.append((name, rank * width, max(0, min(width, len(values[name]) - rank * width)), width))
        return found
    total = sum(len(values[name]) for name in names)
    edges = [0, *(min(total, i * total // ranks + cut) for i in range(1, ranks)), total]
    found, begin = [], 0
    for name in names:
        low, high = max(edges[rank], begin), min(edges[rank + 1], begin + len(values[name]))
        if low < high:
            found.append((name, low - begin, high - low, high - low))
        begin += len(values[name])
    return found


def _flat(values: dict[str, Tensor], pieces: list[tuple]) -> Tensor:
    """The shard, with NaN where DeepSpeed pads: nothing may read it."""
    parts = []
    for name, start, numel, width in pieces:
        parts += [values[name][start : start + numel], torch.full((width - numel,), torch.nan)]
    return torch.cat([*parts, torch.full((2,), torch.nan)])


def _write_model_states(
    folder: Path, saved: FakeCheckpoint, shapes: dict, buffers: dict, rank: int, ranks: int, layout: str, dtype: str
) -> None:
    values = saved.weight | saved.frozen
    if layout == "zero3":
        module = {name: torch.empty(0) for name in values}
        fragments = {}
        for name, value in saved.frozen.items():
            width = math.ceil(len(value) / ranks)
            part = torch.full((width,), torch.nan, dtype=value.dtype)
            mine = value[rank * width : (rank + 1) * width]
            part[: len(mine)] = mine
            fragments[name] = part
        name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
    else:
        module = {name: value.to(DTYPES[dtype]).view(shapes[name]) for name, value in values.items()}
        fragments, name = None, "mp_rank_00_model_states.pt"
    content = {"module": module | buffers, "buffer_names": list(buffers), "frozen_param_fragments": fragments}
    torch.save(content, folder / "deepspeed" / name)


class EndedRun:
    """A run that has ended, for what starts runs and waits for them."""

    message = ""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def send_signal(self, sig: int, /) -> None:
        raise AssertionError(sig)
