"""This machine's processor."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def boot_id() -> str:
    """One for all containers of a machine, and another after it was started again; where Linux has none, its name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return platform.node()


def cpu_name() -> str:
    """The processor's name, as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def cpu_features() -> str:
    """The instructions that the processor has, as the kernel lists them; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    lists = (line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features")))
    return next(lists, platform.machine())


def has_bf16_units() -> bool:
    """Whether the processor multiplies in bf16; True where the kernel does not list what it has."""
    found = set(cpu_features().split())
    return len(found) == 1 or bool(found & {"avx512_bf16", "amx_bf16", "bf16"})


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container's quota of time."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = _quota()
        return max(1, min(cores, math.ceil(int(quota) / int(period)))) if int(quota) > 0 else cores
    return cores


def _quota() -> list[str]:
    """Microseconds of all cores, and in how many of them; the first is no positive number where there is no limit."""
    if (CGROUPS / "cpu.max").exists():
        return (CGROUPS / "cpu.max").read_text(encoding="utf-8").split()
    return [(CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")]


def free_cores(seconds: float = 0.2) -> float:
    """How many of the usable cores other processes left to this one for so long; all where the kernel does not say."""
    idle, own, began = _idle_seconds(), sum(os.times()[:2]), time.monotonic()
    if not idle:
        return float(usable_cores())
    time.sleep(seconds)
    free = _idle_seconds() - idle + sum(os.times()[:2]) - own
    return min(float(usable_cores()), free / (time.monotonic() - began))


def _idle_seconds() -> float:
    """For how long this process's cores have had nothing to do since the machine started; 0 if the kernel is silent."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0.0
    # Waiting for a disk is idle as well.
    return sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in cores) / os.sysconf("SC_CLK_TCK")
