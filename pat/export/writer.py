"""Safetensors files written tensor by tensor: nothing but the current chunk is in memory.

Format: 8 bytes of little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SHARD_BYTES = 5 * 10**9  # a larger model is written as several files, as Hugging Face does
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Spec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path,
    specs: Iterable[Spec],
    metadata: dict[str, str],
    chunks: Callable[[Spec], Iterable[Tensor]],  # the tensor's elements in row-major order, in its dtype
) -> None:
    """Write one file. `chunks` is called once per tensor: wide dtypes first (so that all are aligned), then by name."""
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for spec in ordered:
        start, end = end, end + spec.numbytes
        header[spec.name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for spec in ordered:
            written = 0
            for chunk in chunks(spec):
                assert chunk.dtype == spec.dtype, (spec, chunk.dtype)
                written += file.write(chunk.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            assert written == spec.numbytes, (spec, written)
        file.flush()
        os.fsync(file.fileno())


def split(specs: Iterable[Spec], limit: int) -> list[list[Spec]]:
    """Tensors in name order, packed into files of at most `limit` bytes (a larger tensor has a file of its own)."""
    files: list[list[Spec]] = []
    size = 0
    for spec in sorted(specs, key=lambda spec: spec.name):
        if not files or size + spec.numbytes > limit:
            files.append([])
            size = 0
        files[-1].append(spec)
        size += spec.numbytes
    return files


def write_model(
    folder: Path, specs: Iterable[Spec], chunks: Callable[[Spec], Iterable[Tensor]]
) -> dict[str, str]:  # the file of each tensor
    """`model.safetensors`, or several files, and their index; parameters of one dtype are written in name order.

    Servers such as vLLM read every *.safetensors of a folder that has no index, masks.safetensors too, and fail.
    """
    files = split(specs, SHARD_BYTES)
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    weight_map = {}
    for name, content in zip(names, files, strict=True):
        write_safetensors(folder / name, content, {"format": "pt"}, chunks)
        weight_map |= {spec.name: name for spec in content}
    total = sum(spec.numbytes for content in files for spec in content)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return weight_map
