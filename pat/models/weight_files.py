"""Whether the files with a model's weights are whole, by their headers: a torn one is named before a rank starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from pat.common.comm import LOCAL, Comm
from pat.common.hashing import WeightsHash, file_sha256

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


def weights_sha256(folder: Path, world: Comm = LOCAL) -> str:
    """sha256 over the names and hashes of the files that hold a model's weights. Collective: ranks share the files."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    mine = [f"{file_sha256(file)}  {file.name}\n" for file in files[world.rank :: world.world_size]]
    every = sorted(line for lines in world.gather(mine) for line in lines)
    return hashlib.sha256("".join(every).encode()).hexdigest()


def stored_sha256(files: Iterable[Path]) -> str:
    """WeightsHash of all tensors in safetensors files, whichever file each is in: what a gate's result names. It is
    weights_sha256 of export.json where nothing was taken out, merged, rounded or renamed."""
    digest = WeightsHash()
    with contextlib.ExitStack() as stack:
        places: dict[str, Any] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, "pt"))
            places |= dict.fromkeys(file.keys(), file)
        for name in sorted(places):
            digest.update(name, places[name].get_tensor(name))
    return digest.hexdigest()


def identity(path: str | None, revision: str | None, world: Comm = LOCAL) -> dict[str, str] | None:
    """Path and `weights_sha256` of a model's folder or hub name; None: not on this machine. Collective."""
    if path is None:
        return None
    if Path(path).is_dir():
        return {"path": path, "sha256": weights_sha256(Path(path), world)}
    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    if not isinstance(cached, str):
        return None
    return {"path": path, "sha256": weights_sha256(Path(cached).parent, world)}


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
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        raise ValueError(f"{key}: {index} is not a readable index of weights: {_WHAT_TO_DO}") from None
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise ValueError(f"{key}: {index.parent} lacks {missing[0]}, which {INDEX} names: {_WHAT_TO_DO}")
