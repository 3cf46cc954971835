"""The tensors in an exported folder's files, by the names that they have in the model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pat.export.layout import View, layout
from pat.export.verify import ExportError


def persistent(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that are saved."""
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


class Stored:
    """Reads a parameter or persistent buffer, whole, of the model that the folder's config.json describes."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """ExportError where the files have other tensors: stock code would draw or ignore them."""
        self._where: dict[str, Path] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            with safe_open(path, "pt") as file:
                self._where |= dict.fromkeys(file.keys(), path)
        self._shapes = {name: tuple(value.shape) for name, value in [*model.named_parameters(), *persistent(model)]}
        self._layout = layout(model, self._shapes)
        wanted = {part.name for name in self._shapes for part in self._parts(name)}
        if wanted != self._where.keys():
            differing = sorted(wanted ^ self._where.keys())[:3]
            raise ExportError(f"config.json describes a model with other tensors: {differing}.")

    def __call__(self, name: str) -> Tensor:
        """The tensor, put together of its parts."""
        whole: Tensor | None = None
        for part in self._parts(name):
            value = self._read(part)
            if whole is None:
                whole = torch.empty(self._shapes[name], dtype=value.dtype)
            part.of(whole).copy_(value)
        assert whole is not None
        return whole

    def _parts(self, name: str) -> list[View]:
        return self._layout.parts(name, self._shapes[name])

    def _read(self, part: View) -> Tensor:
        with safe_open(self._where[part.name], "pt") as file:
            value = file.get_tensor(part.name)
        if tuple(value.shape) != part.shape:
            raise ExportError(f"{part.name} has the shape {tuple(value.shape)}, not {part.shape}.")
        return value
