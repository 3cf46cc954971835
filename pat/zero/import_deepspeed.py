"""DeepSpeed, without a package that it imports for its autotuner alone."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

from pat.common.imports import no_collector

AUTOTUNER_ONLY = "mlflow"


def import_deepspeed() -> ModuleType:
    """The package `deepspeed`. Its autotuner, which pat never runs, imports MLflow wherever that is installed: half of
    the time that a launcher or a rank takes to import it, and 120 MB of memory in each."""
    hidden = AUTOTUNER_ONLY not in sys.modules
    if hidden:
        cast("dict[str, ModuleType | None]", sys.modules)[AUTOTUNER_ONLY] = None  # as if it were not there
    try:
        with no_collector():
            import deepspeed  # pyright: ignore[reportMissingTypeStubs]
    finally:
        if hidden:
            del sys.modules[AUTOTUNER_ONLY]
    return deepspeed
