"""A folder that is written beside its place, or inside it, before it is whole; and what a kill leaves of that."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written(target: Path, inside: bool) -> Iterator[Path]:
    """A new hidden folder to fill and to move; held by a lock while this process lives, removed by an exception."""
    name = f"{os.getpid()}-{secrets.token_hex(4)}.partial"  # in containers numbers of processes repeat
    part = target / f".{name}" if inside else target.with_name(f".{target.name}.{name}")
    part.mkdir()
    alive = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # without locks, what a kill leaves stays
            fcntl.flock(alive, fcntl.LOCK_EX)
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(alive)


def clear(target: Path) -> None:
    """Remove what a killed `written` of this target has left."""
    target = Path(os.path.realpath(target))  # which takes links that lead nowhere
    for part in [*target.glob(".[0-9]*.partial"), *target.parent.glob(f".{glob.escape(target.name)}.[0-9]*.partial")]:
        with contextlib.suppress(OSError):  # held by one that lives, or gone
            handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part, ignore_errors=True)
            finally:
                os.close(handle)
