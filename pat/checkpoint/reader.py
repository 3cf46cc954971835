"""Read any parameter of a checkpoint from DeepSpeed's own shard files, whatever the number of ranks and the ZeRO stage.

No rank and no DeepSpeed is needed: the manifest's segments say which flat fp32 shard holds which elements of a
parameter, and only those bytes are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pat.common.hashing import file_sha256, unpack_keep
from pat.pruning import state_keys
from pat.pruning.state_keys import KEEP
from pat.zero import checkpoint_files
from pat.zero.checkpoint_files import LAYOUTS, CheckpointError

FORMAT = 1
WINDOW = 1 << 26  # bytes read through mappings before they are dropped: bounds the resident memory
KEYS = ("step", "world_size", "zero_stage", "dtype", "layout", "parameters", "tied", "ranks", "files")
STATES = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _SavedSegment:
    """Where a contiguous run of a parameter lies: a rank's Segment, as the manifest lists it."""

    rank: int
    shard: int
    offset: int  # in the shard
    start: int  # in the parameter
    numel: int


def read_manifest(step_dir: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint directory; a missing, unreadable, torn or foreign one is a CheckpointError."""
    path = Path(step_dir) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{step_dir} was never finished: it has no manifest.json; use an older one.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); use an older checkpoint.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is torn ({error}); use an older checkpoint.") from error
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if written != FORMAT:
        raise CheckpointError(
            f"{path} has format {written!r}, this version reads {FORMAT}; use the version that wrote it."
        )
    missing = [key for key in KEYS if key not in manifest]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; use an older checkpoint.")
    return manifest


def _fault(path: Path, expected: Mapping[str, Any], hashed: bool) -> str:
    """What is wrong with a file of a checkpoint; empty where nothing is."""
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"has {size} bytes, not {expected['bytes']}"
    if hashed and file_sha256(path) != expected["sha256"]:
        return "is not what was saved (its sha256 differs)"
    return ""


class CheckpointReader:
    """Parameters, optimizer state and pruner state of one checkpoint directory, by parameter name and logical index."""

    def __init__(self, step_dir: str | Path, verify: bool = True) -> None:
        """Check the manifest and, with `verify`, every file's size and sha256."""
        self.dir = Path(step_dir)
        self.manifest = read_manifest(self.dir)
        if self.manifest["layout"] not in LAYOUTS:
            raise CheckpointError(
                f"{self.dir}: unknown layout {self.manifest['layout']!r}; allowed: {', '.join(LAYOUTS)}."
            )
        if verify:
            self.verify_files()
        self.parameters: dict[str, dict[str, Any]] = {p["name"]: p for p in self.manifest["parameters"]}
        self._segments = self._index()
        self._files: dict[str, Any] = {}
        self._shards: dict[int, checkpoint_files.SavedShards] = {}
        self._pruner_files: dict[int, Any] = {}
        self._touched = 0  # bytes read since the mappings were opened

    def verify_files(self, share: tuple[int, int] = (0, 1)) -> None:
        """Compare all sizes, and the sha256 of this reader's `share` (i of n) of the files, with the manifest."""
        for index, (name, expected) in enumerate(sorted(self.manifest["files"].items())):
            try:
                fault = _fault(self.dir / name, expected, hashed=index % share[1] == share[0])
            except FileNotFoundError:
                fault = "is missing"
            except OSError as error:
                fault = f"cannot be read ({error.strerror or error})"
            if fault:
                raise CheckpointError(f"{self.dir / name} {fault}; use an older checkpoint.")

    def numel(self, name: str) -> int:
        """Elements of a parameter."""
        return math.prod(self._parameter(name)["shape"])

    def has(self, kind: str, name: str) -> bool:
        """Whether a kind (weight, exp_avg, exp_avg_sq, keep, score, dense) was saved for a parameter."""
        parameter = self._parameter(name)
        segments = self._segments.get(name)
        if not segments:
            return False
        if kind in STATES:
            shards = self._rank(segments[0].rank)
            return kind == "weight" or kind in shards.states[segments[0].shard]
        pruner = parameter["pruner"]
        return pruner is not None and any(self._pruner_slice(kind, pruner, name, segment) for segment in segments)

    def read(self, kind: str, name: str, start: int = 0, numel: int | None = None, out: Tensor | None = None) -> Tensor:
        """Elements [start, start + numel) of a trainable parameter's fp32 weight, exp_avg or exp_avg_sq, row-major.

        Weights are effective weights. `out`: a (numel,) tensor to fill. Never a view of the file.
        """
        if kind not in STATES:
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(STATES)}.")
        numel, out = self._out(name, start, numel, out, torch.float32)
        for segment, low, high in self._cover(name, start, numel):
            shards = self._rank(segment.rank)
            try:
                flat = shards.weights[segment.shard] if kind == "weight" else shards.states[segment.shard][kind]
            except (IndexError, KeyError) as error:
                raise CheckpointError(f"{self.dir} holds no {kind} of {name}.") from error
            flat = flat.detach().reshape(-1)
            first = segment.offset + low - segment.start
            if first + high - low > len(flat):
                raise CheckpointError(
                    f"{self.dir}: shard {segment.shard} of rank {segment.rank} is too short for {name}."
                )
            out[low - start : high - start].copy_(flat[first : first + high - low])
            del flat, shards  # a mapping can only be dropped when nothing refers to it
            self._release((high - low) * 4)
        return out

    def weight(self, name: str) -> Tensor:
        """The whole effective weight in its own shape, fp32; frozen parameters are upcast."""
        parameter = self._parameter(name)
        if not parameter["trainable"]:
            return self.frozen(name).float()
        return self.read("weight", name).view(parameter["shape"])

    def optimizer_step(self, name: str) -> int:
        """The number of steps that Adam counted for a parameter (0: no step yet)."""
        steps = {int(self._rank(p.rank).states[p.shard].get("step") or 0) for p in self._segments.get(name, [])}
        if len(steps) != 1:
            raise CheckpointError(f"{self.dir} holds no single optimizer step for {name}: {sorted(steps)}.")
        return steps.pop()

    def buffers(self) -> list[str]:
        """Names of the persistent buffers."""
        known = self.parameters.keys() | self.manifest["tied"].keys()
        return [name for name in self._model(0)["module"] if name not in known]

    def frozen(self, name: str) -> Tensor:
        """A frozen parameter or persistent buffer, whole, in its saved dtype."""
        module, parameter = self._model(0)["module"], self.parameters.get(name)
        if self.manifest["layout"] == "zero3" and parameter is not None:
            fragments = [self._model(rank)["frozen_param_fragments"] for rank in range(self.manifest["world_size"])]
            if not all(part is not None and name in part for part in fragments):
                raise CheckpointError(f"{self.dir} holds no frozen parameter {name}.")
            whole = torch.cat([part[name].detach().reshape(-1) for part in fragments])
            value = whole[: self.numel(name)].view(parameter["shape"]).clone()
            del fragments, whole
        elif name in module:
            value = module[name].detach().clone()
        else:
            raise CheckpointError(f"{self.dir} holds no frozen parameter or buffer {name}.")
        del module
        self._release(value.nbytes)
        return value

    def pruner(
        self, kind: str, pruner: str, name: str, start: int = 0, numel: int | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Elements [start, start + numel) of a pruner's keep (uint8 flags), score or dense (fp32) of a parameter."""
        numel, out = self._out(name, start, numel, out, torch.uint8 if kind == KEEP else torch.float32)
        for segment, low, high in self._cover(name, start, numel):
            stored = self._pruner_slice(kind, pruner, name, segment)
            if stored is None:
                raise CheckpointError(f"{self.dir} holds no {kind} of {name} from pruner {pruner!r}.")
            first, last = low - segment.start, high - segment.start
            if kind == KEEP:
                byte = first // 8
                flags = unpack_keep(stored[byte : (last + 7) // 8], last - 8 * byte)
                values = flags[first - 8 * byte :]
            else:
                values = stored[first:last]
            out[low - start : high - start].copy_(values)
            del stored, values
            self._release((high - low) * (1 if kind == KEEP else 4))
        return out

    def gates(self, pruner: str) -> dict[str, Tensor]:
        """The state of a structure pruner, which is the same on all ranks; empty where there is none."""
        opened, keys = self._pruner_file(0)
        return {name: opened.get_tensor(key) for name, key in state_keys.gates_in(keys, pruner).items()}

    def keep(self, name: str) -> Tensor | None:
        """A parameter's keep flags, whole and in its shape (uint8), or None where nothing was pruned."""
        parameter = self._parameter(name)
        if not self.has(KEEP, name):
            return None
        return self.pruner(KEEP, parameter["pruner"], name).view(parameter["shape"])

    def _parameter(self, name: str) -> dict[str, Any]:
        if name not in self.parameters:
            raise CheckpointError(f"{self.dir} has no parameter {name}; it is a checkpoint of another model.")
        return self.parameters[name]

    def _out(
        self, name: str, start: int, numel: int | None, out: Tensor | None, dtype: torch.dtype
    ) -> tuple[int, Tensor]:
        total = self.numel(name)
        numel = total - start if numel is None else numel
        if start < 0 or numel < 0 or start + numel > total:
            raise ValueError(f"{name} has {total} elements, not [{start}, {start + numel}).")
        if out is not None and tuple(out.shape) != (numel,):
            raise ValueError(f"out has shape {tuple(out.shape)} instead of ({numel},).")
        return numel, torch.empty(numel, dtype=dtype) if out is None else out

    def _index(self) -> dict[str, list[_SavedSegment]]:
        """Segments of each parameter in logical order; they must cover every trainable parameter."""
        segments: dict[str, list[_SavedSegment]] = {}
        for rank in self.manifest["ranks"]:
            for s in rank["segments"]:
                segment = _SavedSegment(rank["rank"], s["shard"], s["offset"], s["start"], s["numel"])
                segments.setdefault(s["name"], []).append(segment)
        for own in segments.values():
            own.sort(key=lambda segment: (segment.start, segment.rank))
        self._segments = segments
        for name, parameter in self.parameters.items():
            if parameter["trainable"]:
                for _ in self._cover(name, 0, self.numel(name)):
                    pass
        return segments

    def _cover(self, name: str, start: int, numel: int) -> Iterator[tuple[_SavedSegment, int, int]]:
        """(segment, low, high) that together are [start, start + numel), each element once."""
        at = start
        for segment in self._segments.get(name, []):
            if segment.start <= at < min(segment.start + segment.numel, start + numel):
                high = min(segment.start + segment.numel, start + numel)
                yield segment, at, high
                at = high
        if at != start + numel:
            reason = f"no rank holds {name} from element {at} on"
            raise CheckpointError(f"{self.dir}: {reason}; is it frozen, or the checkpoint incomplete?")

    def _release(self, numbytes: int) -> None:
        """Count what was read and drop all mappings now and then: their pages count as resident memory."""
        self._touched += numbytes
        if self._touched > WINDOW:
            self._touched = 0
            self._files.clear()
            self._shards.clear()
            self._pruner_files.clear()

    def _load(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = checkpoint_files.load(self.dir / name)
        return self._files[name]

    def _model(self, rank: int) -> dict[str, Any]:
        """The contents of DeepSpeed's model states file."""
        return self._load(checkpoint_files.model_file(self.manifest["files"], self.manifest["layout"], rank))

    def _rank(self, rank: int) -> checkpoint_files.SavedShards:
        if rank not in self._shards:
            layout, dtype = self.manifest["layout"], self.manifest["dtype"]
            saved = self._load(checkpoint_files.shard_file(self.manifest["files"], layout, dtype, rank))
            segments = next(r["segments"] for r in self.manifest["ranks"] if r["rank"] == rank)
            self._shards[rank] = checkpoint_files.shards(layout, saved, {s["shard"]: s["name"] for s in segments})
        return self._shards[rank]

    def _pruner_slice(self, kind: str, pruner: str, name: str, segment: _SavedSegment) -> Any:
        """The stored (n,) tensor of a segment, unread, or None."""
        opened, keys = self._pruner_file(segment.rank)
        key = state_keys.of_mask(pruner, kind, name, segment.start)
        return opened.get_slice(key) if key in keys else None

    def _pruner_file(self, rank: int) -> tuple[Any, set[str]]:
        """A rank's pruner state, opened, and the names in it."""
        if rank not in self._pruner_files:
            file = {each["rank"]: each["pruner_file"] for each in self.manifest["ranks"]}[rank]
            try:
                opened = safe_open(self.dir / file, "pt") if file else None
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{self.dir / file} cannot be read ({error}); use an older checkpoint."
                ) from error
            self._pruner_files[rank] = (opened, set(opened.keys()) if opened else set())
        return self._pruner_files[rank]
