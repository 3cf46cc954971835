"""Writes files that a crash leaves whole, and checks that directories are writable."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pat.common.text import short


def make(path: Path, key: str) -> list[Path]:
    """Make a folder and those above it that are missing; returns the new ones, outermost first. ValueError says what
    is in the way of `key`."""
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)][::-1]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_empty(missing)
        above = next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), Path())
        if os.path.islink(above) and not os.path.exists(above):
            reason = f"{above} is a link that leads nowhere"
        elif not os.path.isdir(above):
            reason = f"{above} is a file"
        elif error.errno == errno.ENOENT:  # as below /proc
            reason = f"no folder can be made in {above}"
        else:
            reason = f"{error.strerror} ({error.filename or path})"
        raise ValueError(f"{key}={path} cannot be a folder: {reason}; give another") from None
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Take folders away again, innermost first, until one holds something."""
    with contextlib.suppress(OSError):
        for folder in reversed(folders):
            if os.path.isdir(folder):
                folder.rmdir()


@contextlib.contextmanager
def taken_away(path: Path, made: list[Path], kept: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """An exception inside removes the folder again, if `make` made it and `kept` does not hold."""
    try:
        yield
    except BaseException:
        if made and not kept():
            shutil.rmtree(path, ignore_errors=True)
            remove_empty(made)
        raise


@contextlib.contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    """An exception inside gives those of these files that are there their content again."""
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            write_atomic(path, content)
        raise


def cache(given: str | None) -> Path:
    """The folder for what can be made again: the given one, else ~/.cache/pat. Raises ValueError."""
    try:
        return Path(given or "~/.cache/pat").expanduser()
    except RuntimeError:
        raise ValueError("there is no home directory: set PAT_CACHE to a folder for what can be made again") from None


def check_writable(file: Path, key: str) -> None:
    """ValueError where the file could not be written: called before the work whose result it will hold."""
    if os.path.isdir(file):
        raise ValueError(f"{key} {file} is a folder: give the name of a file")
    stream = is_stream(file)
    real = file if stream else Path(os.path.realpath(file))
    for folder in (file.parent, real.parent):  # they differ where it is a link
        if not folder.is_dir():
            raise ValueError(f"{key} {file}: there is no folder {folder}; make it, or give another")
    if not stream:
        _check_length(real, key)
    needed = [file] if stream else [path for path in (real, real.parent) if path.exists()]
    if not all(os.access(path, os.W_OK) for path in needed):  # a new file takes the place of the old
        raise ValueError(f"{key} {file} cannot be written: no permission; give another")


def _check_length(file: Path, key: str) -> None:
    """ValueError where the name is too long, or that of the temporary file is."""
    more = len(os.fsencode(_temporary(file).name)) - os.pathconf(file.parent, "PC_NAME_MAX")
    if more > 0:
        raise ValueError(f"{key}: the name {short(file.name)} is too long: make it {more} bytes shorter")


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part.

    A link stays, and the file that it names is replaced; a device or a pipe (/dev/stdout) is written as it is.
    """
    data = content.encode() if isinstance(content, str) else content
    if (number := _descriptor(str(path))) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        with open(number, "ab", closefd=False) as file:  # opened by its name, it would have a position of its own
            file.write(data)
    elif is_stream(Path(path)):
        with open(path, "ab") as file:
            file.write(data)
    else:
        replace_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_summary(path: Path, content: str) -> None:
    """The same for text that people read, but a GitHub job's summary, to which all of its steps write, is added to."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and os.path.realpath(path) == os.path.realpath(summary):
        with open(path, "a", encoding="utf-8") as file:
            file.write(content)
    else:
        write_atomic(path, content)


def replace_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """The same for a file that `write` writes, given its name."""
    path = Path(os.path.realpath(path))
    temporary = _temporary(path)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _temporary(file: Path) -> Path:
    """Where this process writes what takes the place of a file."""
    return file.with_name(f".{file.name}.{os.getpid()}.tmp")


def renew(folder: Path, write: Callable[[Path], object]) -> None:
    """Make a folder hold what `write` writes, file by file: every state beside it needs it, and a kill may come."""
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    folder.mkdir(exist_ok=True)
    new = {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()}
    for name, content in new.items():
        there = folder / name
        if not there.is_file() or there.read_bytes() != content:
            there.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(there, content)
    for path in list(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder) not in new:
            path.unlink()
    shutil.rmtree(aside)


def _descriptor(path: str) -> int | None:
    """The number of the open file of this process that a path stands for."""
    number = {"/dev/stdout": "1", "/dev/stderr": "2"}.get(path) or path.removeprefix("/dev/fd/")
    return int(number) if number.isdecimal() and number != path else None


def is_stream(path: Path) -> bool:
    """Whether it is a device, a pipe or an open file of this process (/dev/stdout), whose place no file may take."""
    if os.path.exists(path) and not os.path.isfile(path):
        return True
    return str(path) in ("/dev/stdout", "/dev/stderr") or str(path).startswith(("/dev/fd/", "/proc/"))


def sync_directory(path: str | Path) -> None:
    """Make names in a directory (a rename, a new file) survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make all files below a folder, and their names, survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_directory(folder)


def write_json(path: str | Path, content: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(content, indent=2, default=str) + "\n")


def finite(value: Any) -> Any:
    """The same with null for NaN and infinite numbers, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path) -> Any | None:
    """The content, or None where there is no (whole) file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
