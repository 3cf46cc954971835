"""What other tests show with eager kernels holds with compiled ones, too; and interruptions at four ranks.

engine.kernels=compile compiles the pruner's kernels and its gradient norm whatever the size of a shard.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from pat.run.directory import ExitCode
from tests.distributed import runs
from tests.distributed.runs import Start, preempted

pytestmark = [pytest.mark.distributed, pytest.mark.real_processes, pytest.mark.slow]
COMPILED = "engine.kernels=compile"


def finished(run_dir: Path, *overrides: str, ranks: int = 2) -> dict[str, Any]:
    start = Start(run_dir, *overrides, ranks=ranks, launched=False)
    assert start.end() == ExitCode.DONE, start.text()
    return runs.result(run_dir)


def test_compiled_kernels_and_norm_at_another_stage_and_interrupted(tmp_path: Path) -> None:
    eager = runs.reference(tmp_path / "eager")  # ZeRO 2
    run_dir, compiled = tmp_path / "run", (COMPILED, "engine.zero_stage=3")
    preempted(run_dir, "rank 0", signal.SIGTERM, 8, *compiled, launched=False)
    assert finished(run_dir, *compiled) == eager


def test_four_ranks_interrupted(tmp_path: Path) -> None:
    four = ("engine.world_size=4",)
    undisturbed = finished(tmp_path / "undisturbed", *four, ranks=4)
    run_dir = tmp_path / "run"
    preempted(run_dir, "rank 3", signal.SIGTERM, 8, *four, ranks=4, launched=False)
    assert finished(run_dir, *four, ranks=4) == undisturbed
