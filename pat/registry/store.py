"""The files of variants and their records, by the hash of their content, in the registry's directory.

    .lock                   held by whoever reads or changes the registry, for moments
    adding/N/, N.lock       a variant on its way in; its lock is held as long as its process lives
    variants/SHA256/        a variant's files, as they were given; SHA256 is that of `manifest_sha256`
    records/SHA256.json     a version: hashes of its files, lineage, figures; SHA256 is the file's own

Nothing gets its final name before it is whole and on disk, and nothing that has one is ever changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pat.common import partial
from pat.common.files import sync_directory, sync_tree, write_atomic
from pat.run.directory import ExitCode

CHUNK = 1 << 22
CONFIG = "config.json"  # what makes a folder a model
Manifest = Mapping[str, Mapping[str, Any]]  # path in the folder -> {sha256, bytes}


class DamagedError(ValueError):
    """Files are not what the registry has recorded."""

    exit_code = ExitCode.BROKEN_PROMISE


class Store:
    """The files of a registry in the directory `root`: variants and records by their hashes, and the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone in the registry, over all processes; the system lifts the lock when its holder dies."""
        with open(self.root / ".lock", "a") as file:
            _lock(file, fcntl.LOCK_EX)
            yield

    def variant(self, sha256: str) -> Path:
        """Where a variant's files are."""
        return self.root / "variants" / _hex(sha256)

    @contextlib.contextmanager
    def staging(self, given: Path) -> Iterator[Path]:
        """A folder in which a variant is put together; gone afterwards unless `placed` has moved it, so a ValueError
        inside names the folder that was given instead."""
        adding = self.root / "adding"
        with self.locked():
            adding.mkdir(exist_ok=True)
            self._sweep(adding)
            folder = adding / uuid.uuid4().hex[:16]
            lock = folder.with_suffix(".lock")
            file = open(lock, "w")  # noqa: SIM115
            _lock(file, fcntl.LOCK_EX)
        try:
            folder.mkdir()
            yield folder
        except ValueError as error:
            error.args = tuple(str(said).replace(str(folder), str(given)) for said in error.args)
            raise
        finally:
            _clear(lock)
            file.close()

    @contextlib.contextmanager
    def placed(self, staged: Path, manifest: Manifest, used: Callable[[str], bool]) -> Iterator[str]:
        """Give a staged folder its final name, its hash; an exception inside takes it away again, unless a version is
        `used`: one that a server has made, though its answer was lost. The caller holds the lock."""
        sha256 = manifest_sha256(manifest)
        target = self.variant(sha256)
        target.parent.mkdir(exist_ok=True)
        there = target.exists()
        if there and faults(target, manifest):  # damaged since: the new files take its place
            os.rename(target, staged.with_name(f"{staged.name}-damaged"))
            os.rename(staged, target)
        elif not there:
            os.rename(staged, target)
        try:
            sync_directory(target.parent)
            yield sha256
        except BaseException:
            if not there and not used(sha256):
                shutil.rmtree(target, ignore_errors=True)
            raise

    def record(self, content: Mapping[str, Any]) -> str:
        """Keep the record of a version; returns the hash by which it is found."""
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        folder = self.root / "records"
        folder.mkdir(exist_ok=True)
        file = folder / f"{sha256}.json"
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            write_atomic(file, text)
        return sha256

    def recorded(self, sha256: str) -> dict[str, Any]:
        """What `record` kept. Raises DamagedError."""
        file = self.root / "records" / f"{_hex(sha256)}.json"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise DamagedError(
                f"{file} is not there: give --dir, the directory into which the version was added"
            ) from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedError(f"{file} was changed: its hash is not its name; restore it from a copy")
        record: dict[str, Any] = json.loads(content)
        for name in record["files"]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DamagedError(f"{file} names {name}, a path out of its folder: it was not written by pat")
        return record

    def _sweep(self, adding: Path) -> None:
        """Remove leftovers of processes that died."""
        for lock in adding.glob("*.lock"):
            with open(lock, "w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                _clear(lock)


def copy_in(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file, whole and on disk when this returns; returns sha256 and bytes of what was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as given, open(target, "wb") as taken:
        while chunk := given.read(CHUNK):
            digest.update(chunk)
            size += taken.write(chunk)
        taken.flush()
        os.fsync(taken.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}


def copy_out(folder: Path, manifest: Manifest, target: Path, new: bool) -> None:
    """A variant's files in the empty folder `target`, every hash compared on the way. Raises DamagedError.

    A folder that is `new` becomes whole in one step. One that was there before may be a mount point, so it stays, and
    config.json comes last: what a kill leaves in it is no model.
    """
    target = target.resolve()
    moved: list[Path] = []
    try:
        with partial.written(target, inside=not new) as part:
            for name, said in manifest.items():
                source = folder / name
                if not source.is_file():
                    raise DamagedError(f"{source} is not there any more: add the variant again, which puts it back")
                if copy_in(source, part / name) != said:
                    raise DamagedError(
                        f"{source} was changed since it was added: add the variant again, which puts it back"
                    )
            sync_tree(part)
            if new:
                os.replace(part, target)
                sync_directory(target.parent)
                return
            for path in sorted(part.iterdir(), key=lambda path: path.name == CONFIG):
                if path.name == CONFIG:
                    sync_directory(target)
                moved.append(target / path.name)
                os.replace(path, moved[-1])
            part.rmdir()
            sync_directory(target)
    except BaseException:
        for path in moved:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def faults(folder: Path, manifest: Manifest, only: Sequence[str] | None = None) -> list[str]:
    """What is wrong with a variant's files, or with `only` some of them, a sentence each."""
    from pat.common.hashing import file_sha256  # which takes torch along

    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    there = {path.relative_to(folder).as_posix(): path for path in files}
    if only is not None:
        there = {name: path for name, path in there.items() if name in only}
        manifest = {name: said for name, said in manifest.items() if name in only}
    found = [f"{name} is there and was not added" for name in sorted(there.keys() - manifest.keys())]
    for name, said in manifest.items():
        if name not in there:
            found.append(f"{name} is missing")
        elif there[name].is_symlink() or not there[name].is_file():
            found.append(f"{name} is not a file any more")
        elif there[name].stat().st_size != said["bytes"]:
            found.append(f"{name} has {there[name].stat().st_size:,} bytes, and {said['bytes']:,} were added")
        elif file_sha256(there[name]) != said["sha256"]:
            found.append(f"{name} has another sha256 than what was added")
    return found


def manifest_sha256(manifest: Manifest) -> str:
    """Of the names and hashes of all files."""
    lines = [f"{said['sha256']}  {name}\n" for name, said in sorted(manifest.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _clear(lock: Path) -> None:
    """Remove the folders of a lock, and the lock."""
    for left in filter(Path.is_dir, lock.parent.glob(f"{lock.stem}*")):
        shutil.rmtree(left, ignore_errors=True)
    lock.unlink(missing_ok=True)


def _hex(sha256: str) -> str:
    """Check that a text is a hash, because it becomes part of a path. Raises DamagedError."""
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise DamagedError(f"{sha256!r} in the registry is not a sha256: the entry was not made by pat, or was changed")
    return sha256


def _lock(file: IO[str], how: int) -> None:
    """ValueError where the file system has no locks."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise ValueError(
            f"the file system of {file.name} has no file locks, so two promotions could meet: choose another --dir"
        ) from error
