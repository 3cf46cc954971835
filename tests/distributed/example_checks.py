"""The examples of docs/examples on ranks, as a user starts them; started again, the loops go on."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.state import AcceleratorState

from tests.distributed import hf_on_cpu
from tests.distributed.harness import main
from tests.distributed.ranks import ROOT


def run(example: str, out: Path) -> None:
    """As `deepspeed docs/examples/EXAMPLE OUT` on each rank."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process of its own has none
    before, sys.argv = sys.argv, [example, f"--local_rank={dist.get_rank()}", str(out)]
    try:
        runpy.run_path(str(ROOT / "docs" / "examples" / example), run_name="__main__")
    finally:
        sys.argv = before
    dist.barrier()


def checks(arguments: list[str]) -> dict[str, Any]:
    """The examples into folders of `arguments[0]`."""
    hf_on_cpu.allow()
    root = Path(arguments[0])
    run("bare_deepspeed.py", root / "bare")
    run("bare_deepspeed.py", root / "bare")
    run("accelerate_loop.py", root / "accelerate")
    run("accelerate_loop.py", root / "accelerate")
    run("hf_trainer.py", root / "hf")
    return {}


if __name__ == "__main__":
    main(checks)
