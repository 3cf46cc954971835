"""The journal of a cut: what each layer has come to, on disk, so that a cut that is stopped does not begin again.

    RUN/calibration/PRUNER-step-00000200/layer-00003.safetensors    flags packed, weights fp32
    RUN/calibration/PRUNER-step-00000200/gradients.safetensors      what is measured once, before the first layer

An entry counts if it has the key that the layer would get now, and contents with the hash they were written with:

    chain_0    = sha256(settings, versions, gates outside of the weights, what goes into the first layer on every rank)
    key_i      = sha256(chain_i, every parameter of layer i before its cut, fp32)
    chain_i+1  = sha256(key_i, what layer i has come to)

and what is measured once, on the whole model, the key sha256(chain_0, what else every rank gives, every parameter).

So what other settings, packages, samples, weights, numbers of ranks or layers below have given is never taken over,
and a torn or altered file is written again. Rank 0 reads, writes and decides; the other ranks get what it has found,
to the bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

import pat
from pat.common.comm import LOCAL, Comm
from pat.common.files import remove_empty, replace_atomic
from pat.common.hashing import pack_keep, tensors_sha256, unpack_keep
from pat.common.typed import of_numpy, untyped
from pat.pruning.calibration.walk import Layer, Walk
from pat.run.directory import AT_STEP

FORMAT = 1
VERSIONS = (pat.__version__, torch.__version__, transformers.__version__)
KEEP = "keep|"  # before the name of what flags belong to


class Journals:
    """The journals of a run. Without a folder nothing is kept."""

    def __init__(
        self,
        root: Path | None = None,
        comm: Comm = LOCAL,
        say: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.root, self.comm, self.say, self.warn = root, comm, say, warn
        self.kept = root is not None  # until one cannot be written

    def open(self, pruner: str, t: int, settings: object, what: str = "layer") -> Journal:
        """Of the cut of a pruner at step t. `settings`: what its repr says decides on what the cut gives."""
        return Journal(self, pruner, t, what, repr((FORMAT, VERSIONS, what, settings)))

    def folder(self, pruner: str, t: int) -> Path:
        """The folder of a pruner's cut at step t. Only where cuts are kept, so that there is a `root`."""
        assert self.root is not None
        return self.root / f"{pruner}{AT_STEP}{t:08d}"

    def forget(self, pruner: str, t: int) -> None:
        """The cuts of a pruner up to step t are not needed any more. One rank only."""
        for folder in self.root.glob(f"*{AT_STEP}*") if self.root is not None else ():
            owner, _, step = folder.name.rpartition(AT_STEP)
            if owner == pruner and step <= f"{t:08d}":
                shutil.rmtree(folder, ignore_errors=True)
        self._tidy()

    def remove(self, pruners: Collection[str]) -> None:
        """Remove the journals of these pruners' cuts, and nothing else: the folder may be somebody's own. One rank."""
        for folder in self.root.glob(f"*{AT_STEP}{'[0-9]' * 8}") if self.root is not None else ():
            if folder.name.rpartition(AT_STEP)[0] in pruners:
                shutil.rmtree(folder, ignore_errors=True)
        self._tidy()

    def _tidy(self) -> None:
        if self.root is not None:
            remove_empty([self.root])

    def give_up(self, folder: Path, reason: str) -> None:
        """Keep no more, and free the disk for the checkpoint that the cut will need. All ranks."""
        self.kept = False
        self.warn(
            f"what is cut so far cannot be kept on disk ({reason}): the cut goes on, but if it is stopped, it begins "
            "again"
        )
        if self.comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            self._tidy()


class Journal:
    """Of one walk over the layers. For every layer: `known`, and where that is None, `put` and `write`."""

    def __init__(self, journals: Journals, pruner: str, t: int, what: str, settings: str) -> None:
        self.journals, self.pruner, self.t, self.what, self.settings = journals, pruner, t, what, settings
        self.taken = self.told = 0  # layers of an earlier start; how many the user knows of
        self.chain = self.key = ""  # rank 0's count
        self.entry: dict[str, Tensor] = {}  # rank 0's, on the host

    def known(self, layer: Layer) -> Iterator[tuple[str, Tensor]] | None:
        """What an earlier start has made of a layer, by name, which every rank must take to the end; None: nothing
        that counts. Collective."""
        if not self.journals.kept:
            return None
        comm, number = self.journals.comm, len(layer.walk.layers)
        if layer.index == 0:
            self.chain = self._origin(layer.walk)
        self.key = self._key(layer)
        self.entry = {}
        found = _read(self._file(layer.index), self.key) if comm.rank == 0 else None
        heads = comm.gather(None if found is None else _heads(found[0]))[0]
        self.taken += heads is not None
        if self.taken > self.told and (heads is None or layer.index + 1 == number):
            self.told = self.taken
            self.journals.say(f"{self.taken} of {number} layers of an earlier start's cut are taken over")
        if heads is None:
            return None
        if found is not None:
            self.chain = _sha256(self.key, found[1])
        return _shared({} if found is None else found[0], heads, comm)

    def once(
        self,
        walk: Walk,  # that has not begun
        given: Mapping[str, Tensor],  # this rank's, on which it also depends
        make: Callable[[], dict[str, Tensor]],  # collective
    ) -> dict[str, Tensor]:
        """What `make` gives, of an earlier start if that had the same weights and samples. Collective."""
        if not self.journals.kept:
            return make()
        comm, path = self.journals.comm, self._folder() / f"{self.what}.safetensors"
        hashes = [self._origin(walk), *comm.gather(tensors_sha256(given))]
        hashes += self._hashes(walk, [name for name, _ in walk.skeleton.named_parameters()])
        found = _read(path, _sha256(*hashes)) if comm.rank == 0 else None
        heads = comm.gather(None if found is None else _heads(found[0]))[0]
        if heads is not None:
            self.journals.say(f"the {self.what} of an earlier start's cut are taken over")
            return dict(_shared({} if found is None else found[0], heads, comm))
        made = make()
        self._keep(path, _sha256(*hashes), {name: value.detach().cpu().contiguous() for name, value in made.items()})
        return made

    def put(self, name: str, value: Tensor) -> None:
        """What a layer has come to: flags (bool) under KEEP, or fp32 values; the last of a name counts."""
        if self.journals.kept and self.journals.comm.rank == 0:
            self.entry[name] = value.detach().to("cpu", copy=True).contiguous()

    def write(self, layer: Layer) -> None:
        """To the disk, with the first of its layers in place of the pruner's earlier cuts; where that fails, there is
        no journal from here on. Collective."""
        if not self.journals.kept:
            return
        self.chain = _sha256(self.key, self._keep(self._file(layer.index), self.key, self.entry))
        self.entry = {}
        if layer.index == 0 and self.journals.comm.rank == 0:
            self.journals.forget(self.pruner, self.t - 1)

    def _keep(self, path: Path, key: str, entry: Mapping[str, Tensor]) -> str:
        """Write rank 0's entry, or else give the journal up; its hash, on rank 0. Collective."""
        failed, digest = None, ""
        if self.journals.comm.rank == 0:
            digest = tensors_sha256(entry)
            try:
                _write(path, key, digest, entry)
            except (OSError, SafetensorError, MemoryError) as error:  # told and not raised, as the other ranks wait
                failed = f"{self.journals.root}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
        failed = self.journals.comm.gather(failed)[0]
        if failed is not None:
            self.journals.give_up(self._folder(), failed)
        return digest

    def _folder(self) -> Path:
        return self.journals.folder(self.pruner, self.t)

    def _file(self, index: int) -> Path:
        return self._folder() / f"{self.what}-{index:05d}.safetensors"

    def _origin(self, walk: Walk) -> str:
        """Before the first layer: settings, and what all ranks send into it. Collective."""
        given = {str(place): value for place, value in enumerate([*walk.hidden.on_host, *walk.real])}
        by_rank = self.journals.comm.gather(tensors_sha256(given))
        gates = [tensors_sha256(walk.gates)] if walk.gates else []
        return _sha256(self.settings, repr((walk.dtype, walk.stack, walk.follow)), *gates, *by_rank)

    def _key(self, layer: Layer) -> str:
        """On rank 0. Collective."""
        return _sha256(self.chain, *self._hashes(layer.walk, layer.walk.parameters(layer.index)))

    def _hashes(self, walk: Walk, names: Sequence[str]) -> list[str]:
        """Of parameters as they are now, on rank 0. Collective."""
        hashes: list[str] = []
        for name in names:
            whole = walk.whole(name)
            if self.journals.comm.rank == 0:
                hashes.append(tensors_sha256({name: whole}))
        return hashes


def _heads(entry: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], Any]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in entry.items()}


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _write(path: Path, key: str, digest: str, entry: Mapping[str, Tensor]) -> None:
    flags = {name: list(value.shape) for name, value in entry.items() if value.dtype == torch.bool}
    packed = {name: of_numpy(pack_keep(value)) if name in flags else value for name, value in entry.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"key": key, "sha256": digest, "flags": json.dumps(flags)}
    replace_atomic(path, lambda temporary: save_file(packed, temporary, head))


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], str] | None:
    """(what a layer has come to, its hash), if the file is whole and has that key."""
    try:
        with untyped(safe_open)(path, "pt") as file:
            head: dict[str, str] = file.metadata()
            if head["key"] != key:
                return None
            flags: dict[str, list[int]] = json.loads(head["flags"])
            entry: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, shape in flags.items():
            entry[name] = unpack_keep(entry[name], torch.Size(shape).numel()).view(shape).bool()
        return (entry, head["sha256"]) if tensors_sha256(entry) == head["sha256"] else None
    except Exception:  # a damaged file may fail anywhere in there, and then it does not count
        return None


def _shared(
    found: Mapping[str, Tensor],  # on rank 0
    heads: Mapping[str, tuple[tuple[int, ...], Any]],
    comm: Comm,
) -> Iterator[tuple[str, Tensor]]:
    """Rank 0's tensors on every rank, one at a time. Collective."""
    for name, (shape, dtype) in heads.items():
        value = found[name].to(comm.device) if name in found else torch.empty(shape, dtype=dtype, device=comm.device)
        yield name, comm.broadcast(0, value)
