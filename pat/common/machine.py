"""This machine's processor."""

from __future__ import annotations

import platform
from pathlib import Path


def boot_id() -> str:
    """One for all containers of a machine, and another after it was started again; where Linux has none, its name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def cpu_name() -> str:
    """The processor's name, as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def cpu_features() -> str:
    """The instructions that the processor has, as the kernel lists them; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    lists = (line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features")))
    return next(lists, platform.machine())


def has_bf16_units() -> bool:
    """Whether the processor multiplies in bf16; True where the kernel does not list what it has."""
    found = set(cpu_features().split())
    return len(found) == 1 or bool(found & {"avx512_bf16", "amx_bf16", "bf16"})
