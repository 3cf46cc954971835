"""Checks of a machine that need no ranks."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pat.common.machine import cpu_name, usable_cores
from pat.common.progress_bar import said_if_slow
from pat.common.text import size_in_words
from pat.doctor import BROKEN, MIND, WELL, Finding
from pat.pruning.weights.kernels import Pass
from pat.run.provenance import versions

SHM_PER_RANK = 66 << 20  # bytes that DeepSpeed's CPU communication maps
SHM_GPU = 1 << 30  # enough for NCCL and data workers
DISK = 10 << 30  # bytes below which a checkpoint of a model of some size may not fit


def check_versions() -> Finding:
    """The packages that the numbers depend on."""
    installed = versions() | {"python": platform.python_version()}
    return Finding("versions", WELL, ", ".join(f"{name} {value}" for name, value in installed.items()), dict(installed))


def check_devices(device: str, ranks: int) -> Finding:
    """Names and memory of the devices; every rank needs a GPU of its own."""
    if device == "cpu":
        cores = usable_cores()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        said = f"{cores} CPU cores, {size_in_words(memory)} of memory, {cpu_name()}; not run on a GPU"
        state = WELL if cores >= ranks else MIND
        said += "" if cores >= ranks else f"; {ranks} ranks share them"
        return Finding("devices", state, said, {"cores": cores, "memory_bytes": memory, "cpu": cpu_name()})
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    cards = [{"name": card.name, "memory_bytes": card.total_memory} for card in devices]
    said = ", ".join(f"{card.name} ({size_in_words(card.total_memory)})" for card in devices)
    return Finding("devices", WELL, said, {"cards": cards})


def check_backend(device: str) -> Finding:
    """Whether torch was built with the backend that ranks meet over."""
    name = "nccl" if device == "cuda" else "gloo"
    there = dist.is_nccl_available() if device == "cuda" else dist.is_gloo_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if there and device == "cuda" else ""  # pyright: ignore
    said = f"{name} {version}".strip() if there else f"this torch has no {name}: install one that has"
    return Finding("backend", WELL if there else BROKEN, said, {"backend": name})


def check_compiler(device: str) -> Finding:
    """A C++ compiler builds DeepSpeed's CPU communication, and the pruner's kernels on a CPU."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler:
        return Finding("compiler", WELL, compiler, {"path": compiler})
    where = "DeepSpeed's CPU communication and the kernels cannot be built" if device == "cpu" else "no op can be built"
    return Finding("compiler", MIND, f"there is no g++, so {where}: install it (Debian: apt install g++)")


def check_kernels(device: str) -> Finding:
    """The pruner's passes compile, and give the same bits as without a compiler."""
    return compare_kernels(_shrink, device)


def compare_kernels(function: Callable[..., None], device: str) -> Finding:
    """One pass over numbers of all sizes, compiled and not."""
    numbers = torch.randn(100_003, generator=torch.Generator().manual_seed(0)).to(device)
    plain, compiled = numbers.clone(), numbers.clone()
    Pass(function, "eager")(plain, numbers, torch.tensor(0.01, device=device))
    try:
        with said_if_slow("compiling the kernels"):
            Pass(function, "compile")(compiled, numbers, torch.tensor(0.01, device=device))
    except Exception as error:  # a dozen kinds: no compiler, no Python headers, no Triton
        first = str(error.__cause__ or error).strip().splitlines()[0]
        return Finding("kernels", MIND, f"torch.compile does not work here ({first}); they run in chunks, more slowly")
    if not torch.equal(plain.view(torch.int32), compiled.view(torch.int32)):
        return Finding("kernels", BROKEN, "compiled kernels give other bits: set engine.kernels=eager")
    return Finding("kernels", WELL, "torch.compile works, and gives the same bits as without it")


def _shrink(weight: Tensor, grad: Tensor, rate: Tensor) -> None:
    """Like the masks' passes: products and a difference that must not be contracted."""
    weight.sub_(weight * grad * rate)


def check_disk(folder: Path) -> Finding:
    """Free space where runs are written."""
    free = shutil.disk_usage(folder).free
    said = f"{size_in_words(free)} free in {folder}"
    if free < DISK:
        return Finding("disk", MIND, f"{said}: a checkpoint has about 14 bytes per parameter", {"free_bytes": free})
    return Finding("disk", WELL, said, {"free_bytes": free})


def check_shared_memory(device: str, ranks: int, folder: Path = Path("/dev/shm")) -> Finding:
    """Ranks of one machine talk through /dev/shm; containers often have 64 MB of it."""
    needed = SHM_GPU if device == "cuda" else SHM_PER_RANK * ranks
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Finding("shared memory", BROKEN, f"there is no {folder}, through which ranks talk: mount it")
    said = f"{size_in_words(free)} free in {folder}"
    if free < needed:
        state = MIND if device == "cuda" else BROKEN
        said += f", and {ranks} ranks want {size_in_words(needed)}: start the container with a larger --shm-size"
        return Finding("shared memory", state, said, {"free_bytes": free})
    return Finding("shared memory", WELL, said, {"free_bytes": free})


def check_locks(folder: Path) -> Finding:
    """Files can be locked where runs and prepared data are: one process tokenises, one start owns a run."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file, open(file.name) as other:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            said = f"{folder} has no file locks ({error.strerror}): put runs and data.cache_dir elsewhere"
            return Finding("file locks", BROKEN, said)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("file locks", WELL, f"they work in {folder}")
    return Finding("file locks", BROKEN, f"two had the same lock in {folder}: put runs and data.cache_dir elsewhere")


def machine(device: str, ranks: int, folder: Path) -> list[Callable[[], Finding]]:
    """The checks, in the order in which they are told."""
    return [
        check_versions,
        lambda: check_devices(device, ranks),
        lambda: check_backend(device),
        lambda: check_compiler(device),
        lambda: check_kernels(device),
        lambda: check_disk(folder),
        lambda: check_shared_memory(device, ranks),
        lambda: check_locks(folder),
    ]
