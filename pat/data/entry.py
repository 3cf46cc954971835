"""A cache entry: a folder of tokenised samples, which any number of processes may fill at the same time.

Its name is the hash of everything that its contents depend on. It is built under a lock in a folder of its own and
renamed when it is whole, so a reader finds all of it or nothing, without any collective.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from pat.common import files
from pat.schema import DataConfig

FORMAT = 7  # of an entry; another format is another entry


def root(cfg: DataConfig) -> Path:
    """The folder of all entries, made if it is not there. Raises ValueError."""
    folder = files.cache(cfg.cache_dir or os.environ.get("PAT_CACHE"))
    files.make(folder, "data.cache_dir" if cfg.cache_dir else "PAT_CACHE")
    return folder


def filled(folder: Path, build: Callable[[Path], dict[str, Any]]) -> bool:
    """Have the entry `folder` whole; returns whether this call made it. `build` writes the samples into the folder that
    it is given, which it may leave files of its own in under raw/, and returns what `info` shall give.

    Not collective: every rank may call it at any time; one builds, the others wait for its lock.
    """
    if _is_whole(folder):
        return False
    with _lock(folder.with_suffix(".lock")):
        if _is_whole(folder):
            return False
        with _quiet():
            _make(folder, build)
    return True


def info(folder: Path) -> dict[str, Any]:
    """What was said of the entry when it was built."""
    return json.loads((folder / "info.json").read_text(encoding="utf-8"))


def _make(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    """Make the entry; the caller holds its lock."""
    for torn in folder.parent.glob(f"{folder.name}*.part"):  # of a process that died
        shutil.rmtree(torn)
    staging = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.part")
    staging.mkdir()
    try:
        said = build(staging)
        shutil.rmtree(staging / "raw", ignore_errors=True)
        sizes = {path.name: path.stat().st_size for path in staging.iterdir()}
        (staging / "info.json").write_text(json.dumps({"sizes": sizes, **said}, indent=1))
        for path in staging.iterdir():
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)  # torn, otherwise it would have been used
        staging.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether an entry has all its files in their full length."""
    try:
        return all((folder / name).stat().st_size == size for name, size in info(folder)["sizes"].items())
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclusive over all processes; the system lifts it when its holder dies. ValueError where it cannot be had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process tokenises this data; waiting for {path}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise ValueError(
                f"The file system of {path.parent} has no file locks, so that ranks cannot wait for each other: set "
                "data.cache_dir to one that has, such as a local disk."
            ) from error
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` draws bars on a terminal only, and leaves its errors to the exceptions."""
    verbosity, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not hidden:
            datasets.enable_progress_bars()


def _sync(path: Path) -> None:
    """Make a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
