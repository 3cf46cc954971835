"""A backend of the registry that is one JSON file, and processes that are killed at a chosen moment."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from pat.common import files
from pat.registry.backend import Entry


class FileBackend:
    """Every call reads the file, and replaces it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict[str, Any]:
        return files.read_json(self.path) or {}

    def _of(self, name: str) -> dict[str, Any]:
        return self._read().get(name, {"versions": [], "aliases": {}, "notes": {}})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        files.write_json(self.path, self._read() | {name: content})

    def names(self) -> list[str]:
        return sorted(self._read())

    def versions(self, name: str) -> list[Entry]:
        return [Entry(*each) for each in self._of(name)["versions"]]

    def add(self, name: str, source: str, tags: Mapping[str, str]) -> int:
        content = self._of(name)
        number = len(content["versions"]) + 1
        content["versions"].append(dataclasses.astuple(Entry(number, dict(tags), 0.0)))
        self._write(name, content)
        return number

    def aliases(self, name: str) -> dict[str, int]:
        return self._of(name)["aliases"]

    def set_alias(self, name: str, alias: str, number: int) -> None:
        content = self._of(name)
        content["aliases"][alias] = number
        self._write(name, content)

    def notes(self, name: str) -> dict[str, str]:
        return self._of(name)["notes"]

    def note(self, name: str, key: str, value: str | None) -> None:
        content = self._of(name)
        content["notes"].pop(key, None)
        if value is not None:
            content["notes"][key] = value
        self._write(name, content)


def in_process(work: Callable[[], object]) -> int:
    """Run it in a process of its own: its exit code, -9 where it was killed."""
    child = start(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(work: Callable[[], object]) -> int:
    """The same, without waiting: the process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@contextlib.contextmanager
def killed_at(moment: int) -> Iterator[None]:
    """SIGKILL this process before its n-th sync, rename or removal of a file, or statement of a database."""
    seen = 0

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **options: Any) -> Any:
            nonlocal seen
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            return function(*given, **options)

        return called

    with contextlib.ExitStack() as stack:
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            stack.enter_context(mock.patch.object(os, name, before(getattr(os, name))))
        if "sqlalchemy" in sys.modules:
            from sqlalchemy import event
            from sqlalchemy.engine import Engine

            for name in ("before_cursor_execute", "commit"):
                event.listen(Engine, name, before(lambda *_: None))
        yield


def killed_everywhere(work: Callable[[], object], check: Callable[[], object]) -> int:
    """Kill `work` at its first moment, its second, ... until it ends by itself, each time in a new process, and `check`
    after each kill; how often it was killed."""
    kills = 0
    while True:

        def one(moment: int = kills) -> None:
            with killed_at(moment):
                work()

        code = in_process(one)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, f"ended with {code} before moment {kills}"
        kills += 1
        check()
