"""The lock under which DeepSpeed's ops are compiled and loaded, which a killed process cannot keep."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import Any

from torch.utils.file_baton import FileBaton

from pat.common.extensions import extensions_dir
from pat.common.machine import boot_id

ABANDONED_S = 900.0  # no compilation takes longer


def load_ops_under_held_lock() -> None:
    """From now on this process loads ops under a `HeldBaton`, if they lie in pat's own directory: in one that the user
    has named, torch's own lock is kept, for programs that only know that one."""
    log = logging.getLogger("torch.utils.cpp_extension")
    log.disabled = os.environ.get("DS_ACCELERATOR") == "cpu"  # it warns of a CUDA toolkit without a card
    from torch.utils import cpp_extension  # DeepSpeed imports it as late

    log.disabled = False
    if os.environ.get("TORCH_EXTENSIONS_DIR") == str(extensions_dir(os.environ)):
        cpp_extension.FileBaton = HeldBaton  # pyright: ignore[reportPrivateImportUsage]


class HeldBaton(FileBaton):
    """torch's lock file of a directory, whose owner is known to live.

    torch makes a file `lock` whenever an op is loaded, compiled already or not, and waits for ever for one that a
    killed process has left. Here `lock` is a second name of the file `lock.held`, on which the owner has a lock of the
    operating system, and that one ends with the process: where the name is there and nobody holds the file, its owner
    was killed. That is known on the owner's machine only, which the file names: some file systems lock for one machine.
    """

    def __init__(self, lock_file_path: str, *others: Any, **named: Any) -> None:
        super().__init__(lock_file_path, *others, **named)  # pyright: ignore[reportUnknownMemberType]
        self._lock, self._file = Path(lock_file_path), Path(f"{lock_file_path}.held")
        self._held: int | None = None  # the file, locked; None: the file system cannot, all is as torch does it

    def try_acquire(self) -> bool | None:
        """Wait until no other loads the op. False: another has compiled it meanwhile."""
        self._held = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            if _locked_after_another(self._held) and not self._lock.exists():
                os.close(self._held)
                return False
            self._make_lock()
        except OSError:
            os.close(self._held)
            self._held = None
            return super().try_acquire()
        return True

    def wait(self) -> None:
        """Nothing: `try_acquire` has waited."""
        if self._held is None:
            super().wait()

    def release(self) -> None:
        """Remove the name, then let go: who waits sees that this one was not killed."""
        with contextlib.suppress(FileNotFoundError):  # removed by one who could not know that this one lives
            super().release()
        if self._held is not None:
            os.close(self._held)

    def _make_lock(self) -> None:
        while True:
            if self._lock.exists():
                if self._abandoned():
                    self._lock.unlink(missing_ok=True)
                else:
                    time.sleep(self.wait_seconds)
                continue
            self._file.write_text(boot_id())
            with contextlib.suppress(FileExistsError):
                return os.link(self._file, self._lock)

    def _abandoned(self) -> bool:
        """Whether `lock` is that of a killed process: one like this, or one with torch's own that took too long."""
        try:
            found = self._lock.stat()
        except FileNotFoundError:
            return False
        own = found.st_ino == self._file.stat().st_ino and self._file.read_text(encoding="utf-8") == boot_id()
        return own or time.time() - found.st_mtime > ABANDONED_S


def _locked_after_another(descriptor: int) -> bool:
    """Lock a file for this process alone; whether another had it until now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    return False
