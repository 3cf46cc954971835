"""Which tests run which lines of pat, and how long they take: so that a fault meets only the tests that can see it.

A test file runs once under `coverage`, whose context is the test that is running; what runs between tests, and what
several tests share, has none. A line outside of functions runs in the test that happens to import its file first, so
every test counts for it.
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

BETWEEN = ""


class Recorder:
    """A pytest plugin: the lines of `files` that every test runs, and its seconds."""

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        import coverage

        self.root, self.files = root, sorted(set(files))
        self.seconds: dict[str, float] = {}
        self.test = BETWEEN  # whose lines are recorded
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[str(root / file) for file in self.files]
        )
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins, with its fixtures."""
        self._switch(nodeid)
        self.seconds[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It has ended."""
        self.seconds[nodeid] = round(time.monotonic() - self.seconds[nodeid], 3)
        self._switch(BETWEEN)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """What several tests share is made in the first of them, but runs for all."""
        test = self.test
        if fixturedef.scope != "function":
            self._switch(BETWEEN)
        made = yield
        self._switch(test)
        return made

    def _switch(self, test: str) -> None:
        self.test = test
        self.coverage.switch_context(test)

    def found(self) -> dict[str, Any]:
        """{"seconds": {test: s}, "lines": {file: {line: [numbers of tests; -1: between tests]}}, "files": [...]}."""
        self.coverage.stop()
        data, number = self.coverage.get_data(), {nodeid: i for i, nodeid in enumerate(self.seconds)}
        lines = {}
        for file in self.files:
            by_line = data.contexts_by_lineno(str(self.root / file))
            lines[file] = {line: sorted({number.get(name, -1) for name in names}) for line, names in by_line.items()}
        lines = {file: found for file, found in lines.items() if found}
        return {"seconds": self.seconds, "lines": lines, "files": self.files}


class Reach:
    """What is known of the test files, one JSON file each in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, test: str, digest: str) -> Path:
        """Of a test file with that content."""
        return self.folder / f"{Path(test).stem}-{digest}.json"

    def write(self, test: str, digest: str, found: dict[str, Any]) -> None:
        """Whole, or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(test, digest)
        path.with_suffix(".partial").write_text(json.dumps(found))
        path.with_suffix(".partial").replace(path)

    def files(self, test: str, digest: str) -> set[str]:
        """The files of which it is known which lines a test file with that content runs."""
        path = self.path(test, digest)
        return set(json.loads(path.read_text()).get("files", ())) if path.exists() else set()

    def tests(self, file: str, text: str, lines: range, tests: Sequence[tuple[str, str]]) -> list[str]:
        """The tests that run any of these lines of a file, the quickest first; all for lines outside of functions."""
        seconds: dict[str, float] = {}
        inside = in_functions(text).issuperset(lines)
        for test, digest in tests:
            found = json.loads(self.path(test, digest).read_text())
            names = list(found["seconds"])
            by_line = found["lines"].get(file, {})
            hit = {number for line in lines for number in by_line.get(str(line), ())}
            chosen = [names[number] for number in hit] if inside and -1 not in hit else names
            seconds |= {name: found["seconds"][name] for name in chosen}
        return sorted(seconds, key=seconds.__getitem__)


def in_functions(text: str) -> set[int]:
    """The lines of the bodies of functions, from 1."""
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {line for n in functions for line in range(n.body[0].lineno, (n.end_lineno or 0) + 1)}


class Only:
    """A pytest plugin: of all that is collected these tests, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {name: place for place, name in enumerate(tests)}

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Choose and sort."""
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self.order])
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])
