"""Start N ranks of a script, wait for them, and hand back what rank 0 wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_ranks(script: str, world_size: int, *args: str, timeout_s: float = 600) -> Any:
    """Run `python -m script out.json *args` as `world_size` ranks; the content of out.json."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        env = os.environ | {
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "LOCAL_SIZE": str(world_size),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", script, str(out), *args]
        logs = [open(Path(folder) / f"rank-{r}.log", "w+") for r in range(world_size)]
        ranks = [
            subprocess.Popen(
                command, env=env | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=log, stderr=log, cwd=ROOT
            )
            for r, log in enumerate(logs)
        ]
        try:
            codes = [rank.wait(timeout_s) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if any(codes):
            tails = []
            for r, log in enumerate(logs):
                log.seek(0)
                tails.append(f"--- rank {r}, exit code {codes[r]}\n" + log.read()[-6000:])
            raise AssertionError("\n".join(tails))
        for log in logs:
            log.close()
        return json.loads(out.read_text())
