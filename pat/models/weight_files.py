"""Whether the files with a model's weights are whole, by their headers: a torn one is named before a rank starts."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

WEIGHTS = ("*.safetensors", "*.bin")
INDEX = "model.safetensors.index.json"
_WHAT_TO_DO = "copy or download it again"


def check_weights(path: str, key: str, revision: str | None = None) -> None:
    """ValueError, naming the file, where a model's folder has torn or missing weights.

    Of a hub model, what the local cache holds is checked.
    """
    folder = Path(path)
    if not folder.is_dir():
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
        if not isinstance(cached, str):
            return
        folder = Path(cached).parent
    elif not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        raise ValueError(f"{key}='{path}' holds no weights ({' or '.join(WEIGHTS)}): give a folder that has them")
    _check_index(folder / INDEX, key)
    for file in sorted(folder.glob("*.safetensors")):
        fault = safetensors_fault(file)
        if fault:
            raise ValueError(f"{key}: {file} is not a whole safetensors file ({fault}): {_WHAT_TO_DO}")


def safetensors_fault(file: Path) -> str | None:
    """What is wrong with the file's length or header; None where nothing is.

    Format: 8 bytes of little-endian header length n, n bytes of JSON {name: {data_offsets: [start, end]}}, the data.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if size < 8 or length > size - 8:
                return f"it ends within its header, after {size:,} bytes"
            header = json.loads(content.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, AttributeError, LookupError, TypeError):
        return "its header is not readable"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"it has {size:,} bytes, and its header says {expected:,}"


def _check_index(index: Path, key: str) -> None:
    if not index.is_file():
        return
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        raise ValueError(f"{key}: {index} is not a readable index of weights: {_WHAT_TO_DO}") from None
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise ValueError(f"{key}: {index.parent} lacks {missing[0]}, which {INDEX} names: {_WHAT_TO_DO}")
