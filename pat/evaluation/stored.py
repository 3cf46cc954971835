"""Which files of a folder hold its model: one rule for sizes, a gate's hash and the registry."""

from __future__ import annotations

import json
from pathlib import Path

from pat.export.masks import FILE as MASKS
from pat.models.weight_files import INDEX

SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"


def weight_files(folder: Path) -> list[Path]:
    """The files that from_pretrained loads: model.safetensors, or else those of its index. What lies beside them does
    not count, such as shards of an earlier save, or the weights in another format.

    All safetensors in the folder where neither is there, or where an adapter is loaded, too. ValueError for an index
    that is not readable.

    Source: transformers.modeling_utils._get_resolved_checkpoint_files.
    """
    every = sorted(path for path in folder.glob("*.safetensors") if path.name != MASKS)
    if (folder / ADAPTER).is_file():
        return every
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return every
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a file outside of the folder")
        return [folder / name for name in names]
    except (ValueError, AttributeError, LookupError, TypeError):
        raise ValueError(f"{folder / INDEX} is not a readable index of weights: copy or download it again") from None
