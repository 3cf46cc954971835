"""Sparsity per layer and kind, counted in keep flags of an export or of a run's checkpoint. Pickles are not read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pat.report.sources import Run, Variant

_LAYER = re.compile(r"\.(\d+)(?:\.|$)")
OUTSIDE = "other"  # outside of all layers


@dataclass(frozen=True)
class Count:
    """Weights or units of a kind in a layer."""

    kind: str  # q_proj, ffn, ...
    layer: str  # its number, or OUTSIDE
    removed: int
    total: int

    @property
    def sparsity(self) -> float:
        """Fraction removed, 0 to 1; 0 where there is nothing to remove."""
        return self.removed / self.total if self.total else 0.0


def counts(source: Run | Variant) -> list[Count]:
    """By layer and kind; empty where nothing was pruned, or there are no records of it. ValueError for torn files."""
    flags = _of_folder(source.path) if isinstance(source, Variant) else _of_run(source.path)
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for name, removed, total in flags:
        key = place(name)
        before = found.get(key, (0, 0))
        found[key] = before[0] + removed, before[1] + total
    return [Count(kind, layer, removed, total) for (kind, layer), (removed, total) in found.items()]


def place(name: str) -> tuple[str, str]:
    """(kind, layer) of a parameter (`model.layers.3.mlp.up_proj.weight`) or a site (`ffn:model.layers.3.mlp`)."""
    structure, colon, path = name.rpartition(":")
    layer = _LAYER.search(path)
    number = layer[1] if layer else OUTSIDE
    if colon:
        return structure, number
    inside = path[layer.end() :] if layer else path
    return inside.removesuffix(".weight"), number


def layers(found: Sequence[Count]) -> list[str]:
    """In order, outside of all layers last."""
    names = {count.layer for count in found}
    return sorted(names - {OUTSIDE}, key=int) + [OUTSIDE] * (OUTSIDE in names)


def kept_units(units: Mapping[str, object]) -> Iterator[tuple[str, str, list[int]]]:
    """(pruner, structure, units kept at each site) of a summary's kept_units."""
    for pruner, structures in units.items():
        for structure, kept in structures.items() if isinstance(structures, Mapping) else ():
            if isinstance(kept, list) and all(isinstance(n, int) for n in kept):
                yield pruner, str(structure), kept


def _of_folder(folder: Path) -> Iterator[tuple[str, int, int]]:
    from safetensors import SafetensorError

    from pat.export import masks

    if not (folder / masks.FILE).is_file():
        return
    try:
        for name, keep in masks.read_masks(folder):
            yield name, keep.numel() - int(keep.sum()), keep.numel()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / masks.FILE} cannot be read: {str(error).splitlines()[0]}") from None


def _of_run(folder: Path) -> Iterator[tuple[str, int, int]]:
    from pat.checkpoint.reader import CheckpointReader
    from pat.config import frozen
    from pat.export import masks
    from pat.export.export import kept_structures
    from pat.run.directory import RunDir
    from pat.zero.checkpoint_files import CheckpointError

    step = next((name for which in ("best", "latest") if (name := _pointed(RunDir(folder).checkpoints / which))), None)
    if step is None:
        return
    try:
        reader = CheckpointReader(RunDir(folder).checkpoints / step, verify=False)
        for name in masks.masked(reader):
            numel = reader.numel(name)
            kept = sum(
                int(masks.keep_chunk(reader, name, start, min(masks.CHUNK, numel - start)).sum())
                for start in range(0, numel, masks.CHUNK)
            )
            yield name, numel - kept, numel
        try:
            config = frozen.load(RunDir(folder).config)
        except ValueError:  # of a run by an older pat, whose keys this one need not know
            return
        if any(pruner.structures for pruner in config.pruners.values()) and (folder / "model").is_dir():
            for site, flags in kept_structures(RunDir(folder), reader, config).items():
                yield site, flags.numel() - int(flags.sum()), flags.numel()
    except (CheckpointError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the keep flags of {folder} cannot be read: {str(error).splitlines()[0]}") from None


def _pointed(pointer: Path) -> str | None:
    """The directory that a pointer names: one in the same folder."""
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return name if re.fullmatch(r"step-\d+", name) and (pointer.parent / name).is_dir() else None
