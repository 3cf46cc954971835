"""Selection over real ranks; rank 0 writes the flags and errors of both."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pat.common.comm import Comm
from pat.pruning import registry
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.weights.selection import keep_top, keep_top_per_group
from tests.thread_ranks import cut

PARAMETERS = ("a", "b")
SHAPES = {"a": (400, 300), "b": (64, 96)}


def scores() -> dict[str, torch.Tensor]:
    """Normal scores, a tenth of them tied at the median."""
    generator = torch.Generator().manual_seed(0)
    parameters = {name: torch.randn(SHAPES[name], generator=generator) for name in PARAMETERS}
    for values in parameters.values():
        values[torch.rand(values.shape, generator=generator) < 0.1] = 0.0
    return parameters


SELECTIONS: dict[str, Any] = {
    "keep_top": lambda runs, comm: keep_top(runs, 60_000, comm),
    "per_matrix": lambda runs, comm: keep_top_per_group(runs, {"a": 12_345, "b": 3_000}, str, comm),
    "block": lambda runs, comm: registry.build("granularity", {"name": "block", "rows": 4, "cols": 4}).select(
        runs, 0.8, Global(), comm
    ),
    "n_of_m": lambda runs, comm: registry.build("granularity", {"name": "n_of_m", "n": 2, "m": 4}).select(
        runs, 0.5, Global(), comm
    ),
}


def flags_of(select: Any, comm: Comm, nan: bool = False) -> tuple[dict[str, list[int]], str]:
    """(flags that this rank wrote, 0 elsewhere; the error, if any)."""
    parameters = scores()
    if nan:
        parameters["b"][3, 3] = torch.nan
    keep = {name: torch.zeros(SHAPES[name], dtype=torch.uint8) for name in PARAMETERS}
    runs = cut(parameters, keep, comm.world_size, np.random.default_rng(1), pieces=7)[comm.rank]
    try:
        select(runs, comm)
        return {name: flags.flatten().tolist() for name, flags in keep.items()}, ""
    except ValueError as error:
        return {}, str(error)


def main() -> None:
    """Every selection, then one with a NaN that only one rank holds."""
    dist.init_process_group("gloo")
    comm = Comm(dist.get_rank(), dist.get_world_size())
    result: dict[str, Any] = {}
    for name, select in SELECTIONS.items():
        each = comm.gather(flags_of(select, comm)[0])
        result[name] = {p: np.sum([flags[p] for flags in each], axis=0).tolist() for p in PARAMETERS}
    result["nan"] = {name: comm.gather(flags_of(select, comm, nan=True)[1]) for name, select in SELECTIONS.items()}
    if comm.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
