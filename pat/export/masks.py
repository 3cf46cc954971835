"""Keep flags beside an exported model: `masks.safetensors`, one bit a weight or unit.

Each prunable parameter has ceil(n / 8) bytes under its own name: row-major flags, lowest bit first, 1 = the weight
survives; so has each site of gates, with a flag per unit. The metadata holds the shapes and the hash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pat.checkpoint.reader import CheckpointReader
from pat.common.hashing import MaskHash, pack_keep, unpack_keep
from pat.export.writer import Spec, write_safetensors
from pat.pruning.state_keys import KEEP

CHUNK = 1 << 22  # elements; a multiple of 8
FILE = "masks.safetensors"


def masked(reader: CheckpointReader) -> list[str]:
    """Names of the parameters that a pruner owns, in name order."""
    return sorted(name for name, parameter in reader.parameters.items() if parameter["pruner"] is not None)


def keep_chunk(reader: CheckpointReader, name: str, start: int, numel: int) -> Tensor:
    """Keep flags [start, start + numel) of a pruner's parameter, uint8; all 1 before its first selection."""
    if not reader.has(KEEP, name):
        return torch.ones(numel, dtype=torch.uint8)
    return reader.pruner(KEEP, reader.parameters[name]["pruner"], name, start, numel)


def write_masks(
    reader: CheckpointReader,
    folder: Path,
    mask_sha256: str,
    sites: Mapping[str, Tensor],  # per site of gates (num_units,) uint8
) -> None:
    """Write the flags of a checkpoint; no file for a run without pruners."""
    shapes = {name: reader.parameters[name]["shape"] for name in masked(reader)}
    shapes |= {site: list(flags.shape) for site, flags in sites.items()}
    if not shapes:
        return

    def packed(spec: Spec) -> Iterator[Tensor]:
        if spec.name in sites:
            yield torch.from_numpy(pack_keep(sites[spec.name]))
            return
        numel = reader.numel(spec.name)
        for start in range(0, numel, CHUNK):
            flags = keep_chunk(reader, spec.name, start, min(CHUNK, numel - start))
            yield torch.from_numpy(pack_keep(flags))

    metadata = {"format": "1", "bitorder": "little", "mask_sha256": mask_sha256, "shapes": json.dumps(shapes)}
    specs = [Spec(name, ((math.prod(shape) + 7) // 8,), torch.uint8) for name, shape in shapes.items()]
    write_safetensors(folder / FILE, specs, metadata, packed)


def names(folder: str | Path) -> list[str]:
    """The matrices and sites that have flags in a folder; none without the file."""
    if not (Path(folder) / FILE).is_file():
        return []
    with safe_open(Path(folder) / FILE, "pt") as file:
        return sorted(json.loads(file.metadata()["shapes"]))


def read_masks(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 keep flags in the parameter's shape), in name order."""
    with safe_open(Path(folder) / FILE, "pt") as file:
        for name, shape in sorted(json.loads(file.metadata()["shapes"]).items()):
            numel = torch.Size(shape).numel()
            yield name, unpack_keep(file.get_tensor(name), numel).view(shape)


def hash_masks(folder: str | Path) -> str:
    """mask_sha256 of the file's content."""
    digest = MaskHash()
    for name, keep in read_masks(folder):
        digest.update(name, keep)
    return digest.hexdigest()
