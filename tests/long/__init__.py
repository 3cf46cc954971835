"""Runs that take long; what each found is committed in results/."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from pat.common.files import write_json
from pat.run.provenance import versions


def finish(
    name: str,
    out: Path,
    began: float,  # time.monotonic
    passed: bool,
    what: str,
    expected: dict[str, Any],  # result of the undisturbed run
    **figures: Any,
) -> NoReturn:
    """Write the result file, say how it went and leave with 0 or 1."""
    head = {
        "passed": passed,
        "command": " ".join([f"python -m tests.long.{name}", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "undisturbed": {key: expected[key] for key in ("mask_sha256", "weights_sha256", "sparsity")},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, head | figures | {"versions": versions()})
    print(f"{what}: {'passed' if passed else 'FAILED'}; {out}", flush=True)
    raise SystemExit(0 if passed else 1)
