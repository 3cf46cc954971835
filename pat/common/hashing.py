"""Hashes of masks, weights and files that do not depend on the number of ranks or on the ZeRO stage.

MaskHash and WeightsHash take parameters in name order, and a parameter in row-major order, whole or in pieces of any
size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 20  # elements that are converted at once: bounds the memory, not the result


def pack_keep(
    keep: Tensor,  # (...,) uint8 or bool, 1 = survives
) -> np.ndarray:
    """Pack flags into ceil(n / 8) bytes, lowest bit first; the last byte is padded with zeros."""
    flags = keep.detach().reshape(-1).cpu().numpy()
    return np.packbits(flags, bitorder="little")


def unpack_keep(
    packed: np.ndarray | Tensor,  # (ceil(n / 8),) uint8
    numel: int,
) -> Tensor:
    """The (n,) uint8 flags that `pack_keep` packed."""
    array = packed.cpu().numpy() if isinstance(packed, Tensor) else packed
    if array.size != (numel + 7) // 8:
        raise ValueError(f"{array.size} bytes cannot hold exactly {numel} keep flags ({(numel + 7) // 8} bytes).")
    return torch.from_numpy(np.unpackbits(array, count=numel, bitorder="little"))


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file, streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of tensors as they are: names, types, shapes and every bit."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        for start in range(0, len(flat), CHUNK):
            sha.update(flat[start : start + CHUNK].cpu().view(torch.uint8).numpy().data)
    return sha.hexdigest()


class _ParameterHash:
    """A sha256 over parameters in strictly increasing name order."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._name: str | None = None

    def _enter(self, name: str) -> None:
        """Move to a parameter: the current one again, or one that sorts after it."""
        if name == self._name:
            return
        if self._name is not None and name < self._name:
            raise ValueError(f"parameters must be hashed in name order: {name!r} came after {self._name!r}.")
        self._leave()
        self._name = name

    def _leave(self) -> None:
        """Close the current parameter."""


class MaskHash(_ParameterHash):
    """sha256 over packed keep flags; each parameter's last byte is padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = torch.empty(0, dtype=torch.uint8)  # (< 8,) flags that do not fill a byte yet

    def update(
        self,
        name: str,
        keep: Tensor,  # (...,) uint8 or bool: the next piece of the parameter
    ) -> None:
        """Add the next piece of `name`."""
        self._enter(name)
        flags = keep.detach().reshape(-1)
        taken = 0
        if len(self._rest):
            taken = min(8 - len(self._rest), len(flags))
            self._rest = torch.cat([self._rest, (flags[:taken] != 0).to("cpu", torch.uint8)])
            if len(self._rest) < 8:
                return
            self._sha.update(pack_keep(self._rest).data)
        whole = taken + (len(flags) - taken) // 8 * 8
        for start in range(taken, whole, 8 * CHUNK):
            self._sha.update(pack_keep(flags[start : min(start + 8 * CHUNK, whole)]).data)
        self._rest = (flags[whole:] != 0).to("cpu", torch.uint8)

    def hexdigest(self) -> str:
        """The hash of everything so far."""
        self._leave()
        return self._sha.hexdigest()

    def _leave(self) -> None:
        if len(self._rest):
            self._sha.update(pack_keep(self._rest).data)
            self._rest = self._rest[:0]


class WeightsHash(_ParameterHash):
    """sha256 over weights as little-endian fp32, with -0.0 as 0.0."""

    def update(
        self,
        name: str,
        weight: Tensor,  # (...,) any float dtype: the next piece of the parameter
    ) -> None:
        """Add the next piece of `name`."""
        self._enter(name)
        flat = weight.detach().reshape(-1)
        for start in range(0, len(flat), CHUNK):
            positive = flat[start : start + CHUNK].to("cpu", torch.float32) + 0.0  # -0.0 + 0.0 is 0.0
            self._sha.update(positive.numpy().astype("<f4", copy=False).data)

    def hexdigest(self) -> str:
        """The hash of everything so far."""
        return self._sha.hexdigest()
