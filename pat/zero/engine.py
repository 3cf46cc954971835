"""The DeepSpeed engine and its config: what pat sets, merged with what the user adds."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn

from pat import learning_rates
from pat.common import patterns
from pat.common.comm import barrier
from pat.common.parameters import logical_shape
from pat.common.typed import is_mapping
from pat.models import heads
from pat.schema import Config, OptimConfig
from pat.zero import config_keys
from pat.zero.import_deepspeed import import_deepspeed
from pat.zero.op_lock import load_ops_under_held_lock


def accelerator() -> str:
    """`cuda`, or `cpu` where DeepSpeed has no accelerator, or was told to take none."""
    return "cuda" if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu" else "cpu"


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's config: pat's keys and the user's, merged. Raises ValueError on a conflict and on untested keys."""
    engine, train = config.engine, config.train
    micro = micro_batch_size(config)
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    ours: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.global_batch_size // (micro * engine.world_size),
        "gradient_clipping": engine.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": engine.dtype == "bf16"},
        "fp16": {"enabled": engine.dtype == "fp16"},
    }
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
        ours["zero_force_ds_cpu_optimizer"] = False
    if engine.reduce_dtype == "fp32" and engine.dtype != "fp32":
        ours["communication_data_type"] = "fp32"
    if engine.zero_stage == 0 and engine.dtype == "fp32":
        ours["gradient_clipping"] = 0.0  # pat clips, by the masked norm, and skips steps
    theirs = _user_config(engine.deepspeed)
    config_keys.check(theirs, ours, engine.deepspeed_untested)
    merged = _merge(ours, theirs)
    merged.setdefault("steps_per_print", 1 << 30)
    return merged


def check_values(config: Config) -> None:
    """ValueError for a value of `engine.deepspeed` that DeepSpeed refuses; without such keys it is not imported."""
    if config.engine.deepspeed is None:
        return
    merged = deepspeed_config(config)
    merged["train_batch_size"] = merged["train_micro_batch_size_per_gpu"] * merged["gradient_accumulation_steps"]
    import_deepspeed()
    from deepspeed.runtime.config import (  # pyright: ignore[reportMissingTypeStubs]
        DeepSpeedConfig,
        DeepSpeedConfigError,
    )

    try:
        with redirect_stdout(io.StringIO()):
            DeepSpeedConfig(merged)  # of one rank, as there are no others yet
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"engine.deepspeed: DeepSpeed refuses {key}={first['input']!r}: {first['msg']}") from error
    except (ValueError, TypeError, KeyError, AssertionError, DeepSpeedConfigError) as error:
        raise ValueError(f"engine.deepspeed: DeepSpeed refuses it: {error}") from error


def micro_batch_size(config: Config) -> int:
    """Sequences per forward and rank; by default the global batch without accumulation."""
    train = config.train
    return train.micro_batch_size or max(1, train.global_batch_size // config.engine.world_size)


def _user_config(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"engine.deepspeed={value}: not a readable DeepSpeed JSON ({error})") from error
    if not is_mapping(value):
        raise ValueError(
            f"engine.deepspeed holds {value!r}: give the path of a DeepSpeed JSON, or a mapping of its keys"
        )
    return dict(value)


def _merge(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        mine = ours.get(key)
        if is_mapping(mine) and is_mapping(value):
            merged[key] = _merge(mine, value, f"{path}{key}.")
        elif mine is not None and value not in (mine, "auto"):
            raise ValueError(
                f"engine.deepspeed sets {path}{key}={value}, but pat's own keys make it {mine}; change pat's key and "
                "leave this one out"
            )
        elif value != "auto":
            merged[key] = value
    return merged


def check_accelerator(config: Config) -> None:
    """Raises ValueError for what this machine's accelerator cannot do."""
    if config.engine.dtype == "fp16" and accelerator() == "cpu":
        raise ValueError("engine.dtype=fp16 needs a GPU: DeepSpeed's CPU accelerator has bf16 and fp32")
    alone = "RANK" not in os.environ and config.engine.hostfile is None
    if alone and accelerator() == "cuda" and config.engine.world_size > torch.cuda.device_count():
        raise ValueError(
            f"engine.world_size={config.engine.world_size}, but this machine has {torch.cuda.device_count()} GPUs: set "
            f"at most {torch.cuda.device_count()}, name several machines with engine.hostfile, or start with "
            "deepspeed, torchrun or srun"
        )


def init_distributed(config: Config) -> None:
    """Join the other ranks."""
    # This environment's ninja first: another version of it would find DeepSpeed's op out of date and compile it again.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    deepspeed = import_deepspeed()

    load_ops_under_held_lock()
    with redirect_stdout(io.StringIO()):  # it announces the op that it compiled
        deepspeed.init_distributed(
            dist_backend="nccl" if accelerator() == "cuda" else "gloo",
            timeout=timedelta(minutes=config.engine.timeout_min),
            verbose=False,
        )
    _unlink_shared_memory()


def _unlink_shared_memory() -> None:
    """Unlink this rank's buffer in /dev/shm, 66 MB that DeepSpeed's CPU op would leave there forever.

    All ranks have mapped it by now; the memory goes with the last of them, however they end. Collective.
    """
    if accelerator() == "cpu":
        barrier()
        pattern = f"deepspeed_allreduce_buffer_*_{os.environ['MASTER_PORT']}_{dist.get_rank()}"
        for buffer in Path("/dev/shm").glob(pattern):
            buffer.unlink(missing_ok=True)


@contextmanager
def model_construction(config: Config, ds_config: dict[str, Any]) -> Generator[None]:
    """Inside it transformers builds models under zero.Init at ZeRO 3: no rank ever holds the whole model."""
    if config.engine.zero_stage != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(ds_config)  # transformers holds a weak reference
    yield
    del keep_alive


def param_groups(model: nn.Module, optim: OptimConfig, owner: Mapping[str, str]) -> list[dict[str, Any]]:
    """Groups by (owner, decay, head): a dense shadow is as long as its shard, so prunable weights have their own."""
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    rate = learning_rates.highest(optim, model)
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        decay = len(logical_shape(param)) >= 2 and not patterns.matches(name, optim.no_decay)
        head = optim.head_lr is not None and heads.is_of_head(type(model), name)
        key = (owner.get(name, ""), decay, head)
        if key not in groups:
            lr, wd = optim.head_lr if head else rate, optim.weight_decay if decay else 0.0
            # lr 0 until the first step sets it: DeepSpeed's ZeRO 0 wrapper steps once at construction
            groups[key] = {"params": [], "lr": 0.0, "base_lr": lr, "weight_decay": wd, "base_weight_decay": wd}
        groups[key]["params"].append(param)
    return [groups[key] for key in sorted(groups)]


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW: torch's, or DeepSpeed's fused or CPU one."""
    settings: dict[str, Any] = {"lr": optim.lr, "betas": tuple(optim.betas), "eps": optim.eps}
    if optim.name == "adamw":
        how: dict[str, Any] = {
            "fused": {"fused": True},
            "foreach": {"foreach": True},
            "loop": {"foreach": False, "fused": False},
        }
        return torch.optim.AdamW(groups, **settings, **how[optim.implementation])
    from deepspeed.ops.adam import (  # pyright: ignore[reportMissingTypeStubs]
        DeepSpeedCPUAdam,
        FusedAdam,
    )

    if optim.name == "cpu_adam":
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    return FusedAdam(groups, adam_w_mode=True, **settings)


def build_engine(
    config: Config,
    model: nn.Module,
    owner: Mapping[str, str],  # parameter name -> who needs it in a group of its own
    ds_config: dict[str, Any],
) -> Any:
    """DeepSpeed's engine around the model, with an optimizer whose groups follow `owner`. Collective."""
    deepspeed = import_deepspeed()

    optimizer = build_optimizer(param_groups(model, config.optim, owner), config.optim)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    if config.engine.zero_stage == 0:
        forget_step_of_construction(engine)
    return engine


def forget_step_of_construction(engine: Any) -> None:
    """In low precision DeepSpeed's ZeRO 0 wrapper makes a step on gradients of 0 when it is built. Adam would count it,
    and correct the bias of its moments as if it were a step further: the first update would be 0.74 of itself."""
    optimizer = engine.basic_optimizer
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)  # where FusedAdam counts


def build_teacher_engine(model: nn.Module, ds_config: dict[str, Any]) -> Any:
    """A frozen model built in `model_construction`, with ZeRO 3's hooks that gather a layer while it computes.

    There is no optimizer, so DeepSpeed keeps nothing but the parameter shards. Collective.
    """
    deepspeed = import_deepspeed()

    zero = {key: value for key, value in ds_config["zero_optimization"].items() if key != "offload_optimizer"}
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "bf16", "fp16")
    config = {key: ds_config[key] for key in (*keys, "steps_per_print")} | {"zero_optimization": zero}
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return engine


def set_lr(engine: Any, factor: float) -> None:
    """Every group's learning rate = its base rate x factor."""
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
