"""The inside of DeepSpeed's checkpoint files: which file, which key, which flat tensor. DeepSpeed is not imported.

The files are pickles: they are opened memory-mapped under torch's allow-list. Every other class or function that one
names, DeepSpeed's or of a trainer's client_state, is an inert stand-in: it is never imported, and never called.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pat.run.directory import ExitCode


class CheckpointError(ValueError):
    """The checkpoint is torn, incomplete or from another format."""

    exit_code = ExitCode.BROKEN_PROMISE


class _Inert:
    """Stands for a class or function that a pickle names: it holds what it is given and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(frozen=True)
class SavedShards:
    """One rank's flat fp32 weights and their optimizer states, by shard index."""

    weights: list[Tensor]  # (n,) each
    states: list[dict[str, Any]]


def load(path: Path) -> Any:
    """The contents of a file, memory-mapped, without running any code of the pickle."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        blamed = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise CheckpointError(f"{path} holds more than DeepSpeed and pat write, and is not opened: {blamed}") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use an older checkpoint.") from error


def model_file(files: Collection[str], layout: str, rank: int) -> str:
    """The file with the module's weights (one per rank at ZeRO 3), among the manifest's files."""
    return _named(files, f"zero_pp_rank_{rank}_mp_rank_00" if layout == "zero3" else "mp_rank_00", "model")


def shard_file(files: Collection[str], layout: str, dtype: str, rank: int) -> str:
    """The file with a rank's flat shards, among the manifest's files. A folder that was saved to before may have the
    other dtype's, too."""
    if layout in ("zero0_lp", "zero0_fp32"):
        return model_file(files, layout, rank)
    name = f"zero_pp_rank_{rank}_mp_rank_00"
    return _named(files, f"bf16_{name}" if dtype == "bf16" else name, "optim")


def written(files: Collection[str], layout: str, dtype: str, world_size: int) -> list[str]:
    """The files of one save, among those of a folder that was saved to before; CheckpointError where one is missing."""
    ranks = range(world_size)
    return sorted(
        {model_file(files, layout, rank) for rank in ranks} | {shard_file(files, layout, dtype, rank) for rank in ranks}
    )


def shards(
    layout: str,
    saved: dict[str, Any],  # contents of the shard file
    name_of: dict[int, str],  # the parameter of each shard: read at ZeRO 0 only
) -> SavedShards:
    """A rank's flat fp32 shards and optimizer states, as the layout stores them. CheckpointError where it does not."""
    try:
        return LAYOUTS[layout](saved, name_of)
    except (KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"DeepSpeed's files are not in the layout {layout!r}: {error!r}.") from error


def _named(files: Collection[str], name: str, kind: str) -> str:
    wanted = f"{name}_{kind}_states.pt"
    for file in files:  # in pat's own folder, or where another trainer put it
        if Path(file).name == wanted:
            return file
    raise CheckpointError(f"the manifest lists no {wanted}: the checkpoint is incomplete; use an older one.")


def _by_shard(state_dict: dict[str, Any] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A torch optimizer's state per parameter, in the order of its param groups; a group's `step` fills in."""
    if isinstance(state_dict, list):  # ZeRO's elastic checkpoints
        return state_dict
    states = state_dict["state"]
    return [
        {"step": group.get("step"), **states.get(index, {})}
        for group in state_dict["param_groups"]
        for index in group["params"]
    ]


def _zero12(saved: dict[str, Any], name_of: dict[int, str]) -> SavedShards:
    saved = saved["optimizer_state_dict"]
    return SavedShards(list(saved["single_partition_of_fp32_groups"]), _by_shard(saved["base_optimizer_state"]))


def _zero3(saved: dict[str, Any], name_of: dict[int, str]) -> SavedShards:
    saved = saved["optimizer_state_dict"]
    return SavedShards(list(saved["fp32_flat_groups"]), _by_shard(saved["optimizer_state_dict"]))


def _zero0_low_precision(saved: dict[str, Any], name_of: dict[int, str]) -> SavedShards:
    saved = saved["optimizer"]
    flat = saved.get("fp32_groups_flat")  # FusedAdam: one flat tensor a group; else one tensor a parameter
    weights = list(chain.from_iterable(saved["fp32_groups"])) if flat is None else list(flat)
    return SavedShards(weights, _by_shard(saved["optimizer_state_dict"]))


def _zero0_fp32(saved: dict[str, Any], name_of: dict[int, str]) -> SavedShards:
    weights = [saved["module"][name_of[shard]] for shard in sorted(name_of)]
    return SavedShards(weights, _by_shard(saved["optimizer"]))


LAYOUTS: dict[str, Callable[[dict[str, Any], dict[int, str]], SavedShards]] = {
    "zero12": _zero12,  # ZeRO 1 and 2
    "bf16z1": _zero12,  # ZeRO 1 with fp32 accumulation: BF16_Optimizer
    "zero3": _zero3,
    "zero0_lp": _zero0_low_precision,  # bf16 or fp16 at ZeRO 0
    "zero0_fp32": _zero0_fp32,
}
