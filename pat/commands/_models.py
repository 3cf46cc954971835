"""Options of the commands that load models: folders among keys, the device, the dtype."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype, --config-dir, --json."""
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="to compute in")
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")


def folders_and_keys(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(folders, key=value) among a command's words. Raises ValueError for a folder that is not there."""
    paths = [Path(item) for item in given if "=" not in item or Path(item).is_dir()]
    for path in paths:
        if not path.is_dir():
            raise ValueError(
                f"there is no folder {path}: give runs or Hugging Face folders, such as `pat export` writes"
            )
    return paths, [item for item in given if Path(item) not in paths]


def device(given: str | None) -> str:
    """The device to compute on. ValueError where torch cannot compute there."""
    import torch

    if (given or "").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {given}: this torch sees no GPU here; leave it out to use the CPU")
    chosen = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {chosen}: torch cannot compute there; give cpu or cuda") from None
    return chosen
