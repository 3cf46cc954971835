"""Where DeepSpeed's compiled ops lie."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path

from pat.common import files
from pat.common.machine import cpu_features


def extensions_dir(environment: Mapping[str, str]) -> Path:
    """A directory of pat's own: two versions of DeepSpeed in one directory would break each other's ops, as would two
    kinds of processor, for which it compiles."""
    parts = [sys.prefix, environment.get("DS_ACCELERATOR", ""), cpu_features()]
    parts += [importlib.metadata.version(name) for name in ("deepspeed", "torch")]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return files.cache(environment.get("PAT_CACHE")) / "torch_extensions" / digest[:16]
