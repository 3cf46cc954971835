"""Train a tiny model for two steps in several DeepSpeed layouts and save each as DeepSpeed does.

Started by `ranks.run_ranks` with FOLDER LAYOUT...; writes FOLDER/LAYOUT/{deepspeed/, manifest.json, truth.pt}. The
truth comes from DeepSpeed's own accessors (weights) and from the live optimizer (moments, step), not from the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.adam import fused_adam
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from pat.common.hashing import file_sha256

LAYOUTS: dict[str, dict] = {
    "zero0_fp32": {"stage": 0, "dtype": "fp32", "layout": "zero0_fp32"},
    "zero0_bf16": {"stage": 0, "dtype": "bf16", "layout": "zero0_lp"},
    "zero1_bf16": {"stage": 1, "dtype": "bf16", "layout": "zero12"},
    "zero2_bf16": {"stage": 2, "dtype": "bf16", "layout": "zero12"},
    "zero2_fp32": {"stage": 2, "dtype": "fp32", "layout": "zero12"},
    "zero2_cpu_adam": {"stage": 2, "dtype": "bf16", "layout": "zero12", "adam": "DeepSpeedCPUAdam"},
    "zero2_fused": {"stage": 2, "dtype": "bf16", "layout": "zero12", "adam": "FusedAdam"},
    "zero0_fused": {"stage": 0, "dtype": "bf16", "layout": "zero0_lp", "adam": "FusedAdam"},
    "zero1_fp32_accumulation": {"stage": 1, "dtype": "bf16", "layout": "bf16z1", "grad_accum_dtype": "fp32"},
    "zero3_bf16": {"stage": 3, "dtype": "bf16", "layout": "zero3"},
    "zero3_small": {"stage": 3, "dtype": "bf16", "layout": "zero3", "sub_group_size": 50},
}


class Tiny(nn.Module):
    """Odd sizes, a tied weight, a frozen layer, a persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 7)
        self.frozen = nn.Linear(7, 7)
        self.up = nn.Linear(7, 13)
        self.norm = nn.LayerNorm(13)
        self.down = nn.Linear(13, 7)
        self.head = nn.Linear(7, 23, bias=False)
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(False)
        self.scale: Tensor
        self.register_buffer("scale", torch.full((3,), 0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = hidden + self.down(self.norm(self.up(self.frozen(hidden)))) * self.scale[0].to(hidden.dtype)
        return self.head(hidden).float().square().mean()


def multi_tensor_adam(_: int, __: Tensor, lists: list[list[Tensor]], lr: float, *settings: Any) -> None:
    """FusedAdam's kernel: GPUs have another than this machine would compile for minutes, and what is saved is the
    class's."""
    beta1, beta2, eps, *_rest = settings
    for grad, weight, first, second in zip(*lists, strict=True):
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        weight.sub_(lr * first / (second.sqrt() + eps))


def pieces(optimizer: Any, stage: int, names: Mapping[Any, str], shapes: dict[str, list[int]]) -> tuple[list, list]:
    """This rank's (shards, segments), and the live flat fp32 tensors in shard order."""
    rank, segments = dist.get_rank(), []

    def add(param: Tensor, start: int, numel: int, shard: int, offset: int) -> None:
        if numel > 0:
            name = names[param]
            fields = {"start": start, "numel": numel, "shard": shard, "offset": offset}
            segments.append({"name": name, "shape": shapes[name], **fields})

    if stage == 3:
        flats = list(optimizer.fp32_partitioned_groups_flat)
        for shard, group in enumerate(optimizer.fp16_groups):
            offset = 0
            for param in group:
                size = param.ds_tensor.ds_numel
                add(param, rank * size, min(size, param.ds_numel - rank * size), shard, offset)
                offset += size
    elif stage in (1, 2):
        bf16 = hasattr(optimizer, "bf16_groups")
        flats = list(optimizer.fp32_groups_flat_partition if bf16 else optimizer.single_partition_of_fp32_groups)
        for shard, group in enumerate(optimizer.bf16_groups if bf16 else optimizer.bit16_groups):
            for param in group:
                if param._hp_mapping is not None:
                    low, high = param._hp_mapping.lp_fragment_address, param._hp_mapping.hp_fragment_address
                    add(param, low.start, low.numel, shard, high.start)
    elif hasattr(optimizer, "fp32_groups_flat"):
        flats = list(optimizer.fp32_groups_flat)
        for shard, group in enumerate(optimizer.fp16_groups):
            offset = 0
            for param in group:
                add(param, 0, param.numel(), shard, offset)
                offset += param.numel()
    else:
        groups = optimizer.fp16_groups if hasattr(optimizer, "fp16_groups") else optimizer.param_groups
        params = list(chain.from_iterable(g["params"] if isinstance(g, dict) else g for g in groups))
        flats = list(chain.from_iterable(optimizer.fp32_groups)) if hasattr(optimizer, "fp32_groups") else params
        for shard, param in enumerate(params):
            add(param, 0, param.numel(), shard, 0)
    return flats, segments


def moments(base: Any, flats: list[Tensor], segments: list[dict]) -> dict:
    """Adam's live state of every segment, gathered: (name, start) -> values."""
    mine = {}
    for s in segments:
        state = base.state[flats[s["shard"]]]
        cut = slice(s["offset"], s["offset"] + s["numel"])
        mine[s["name"], s["start"]] = {key: state[key].reshape(-1)[cut].clone() for key in ("exp_avg", "exp_avg_sq")}
        mine[s["name"], s["start"]]["step"] = int(state["step"])
    all_ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(all_ranks, mine)
    return {key: value for rank in all_ranks for key, value in rank.items()}


def write(out: Path, layout: dict) -> None:
    """Train, save, and write the manifest and the truth. Collective."""
    torch.manual_seed(3)
    stage, dtype = layout["stage"], layout["dtype"]
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "communication_data_type": "fp32",
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": dtype == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if "sub_group_size" in layout:
        config["zero_optimization"]["sub_group_size"] = layout["sub_group_size"]
    if "grad_accum_dtype" in layout:
        config["data_types"] = {"grad_accum_dtype": layout["grad_accum_dtype"]}
    if layout.get("adam") == "DeepSpeedCPUAdam":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    model = Tiny()
    shapes = {name: list(param.shape) for name, param in model.named_parameters()}
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    matrices = [param for param in trainable.values() if param.dim() > 1]
    groups = [
        {"params": [p for p in trainable.values() if p.dim() == 1], "weight_decay": 0.0},
        {"params": matrices, "weight_decay": 0.1},
    ]
    kind = layout.get("adam")
    if kind:
        adam = getattr(deepspeed.ops.adam, kind)(groups, lr=1e-2)
    else:
        adam = torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    engine: Any = deepspeed.initialize(model=model, optimizer=adam, config=config)[0]
    optimizer = engine.optimizer
    for step in range(2):
        tokens = torch.arange(10).view(2, 5) + step + dist.get_rank()
        engine.backward(engine(tokens))
        engine.step()
    names = {param: name for name, param in engine.module.named_parameters()}
    flats, segments = pieces(optimizer, stage, names, shapes)

    fp32 = {}
    for param, name in names.items():
        if stage:
            full = safe_get_full_fp32_param(param) if param.requires_grad else None
        else:
            at = next((s["shard"] for s in segments if s["name"] == name), None)
            offset = next((s["offset"] for s in segments if s["name"] == name), 0)
            full = None if at is None else flats[at].detach().reshape(-1)[offset : offset + param.numel()]
        if full is not None:
            fp32[name] = full.detach().float().reshape(shapes[name]).clone()
    with deepspeed.zero.GatheredParameters(list(model.frozen.parameters()), enabled=stage == 3):
        frozen = {f"frozen.{key}": p.detach().clone() for key, p in model.frozen.named_parameters()}
    frozen["scale"] = engine.module.scale.detach().clone()
    adam_state = moments(adam, flats, segments)

    out.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(out), tag="deepspeed", save_latest=False)
    mine = {
        "rank": dist.get_rank(),
        "shards": [{"index": i, "group": i, "numel": flat.numel()} for i, flat in enumerate(flats)],
        "segments": segments,
        "pruner_file": None,
    }
    ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    if dist.get_rank() == 0:
        torch.save({"fp32": fp32, "frozen": frozen, "adam": adam_state}, out / "truth.pt")
        files = sorted(path for path in (out / "deepspeed").iterdir())
        manifest = {
            "format": 1,
            "step": 2,
            "phase": {},
            "world_size": dist.get_world_size(),
            "zero_stage": stage,
            "dtype": dtype,
            "layout": layout["layout"],
            "parameters": [
                {
                    "name": name,
                    "shape": shapes[name],
                    "dtype": "float32" if dtype == "fp32" else "bfloat16",
                    "trainable": name in trainable,
                    "pruner": None,
                }
                for name in shapes
            ],
            "tied": {"head.weight": "embed.weight"},
            "ranks": ranks,
            "files": {
                f"deepspeed/{path.name}": {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files
            },
            "metrics": {},
            "trainer": {},
        }
        (out / "manifest.json").write_text(json.dumps(manifest))
    dist.barrier()


def main() -> None:
    """Write the layouts named on the command line, or all."""
    folder, wanted = Path(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    fused_adam.FusedAdamBuilder = lambda: SimpleNamespace(
        load=lambda: SimpleNamespace(multi_tensor_adam=multi_tensor_adam)
    )
    deepspeed.init_distributed("gloo")
    for name in wanted:
        write(folder / name, LAYOUTS[name])
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(wanted))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
