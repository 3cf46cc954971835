"""What a package's scan finds."""

from __future__ import annotations

import ast
import importlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pat.common import scan

METHOD = """
from dataclasses import dataclass
{more}
@dataclass(frozen=True)
class {cls}:
    name: str = "{name}"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package `scanned`."""
    folder = tmp_path / "scanned"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "scanned"]:
        del sys.modules[name]
    return folder


def test_a_class_is_found_once_where_it_is_defined(package: Path) -> None:
    (package / "b.py").write_text(METHOD.format(cls="Two", name="a two", more="from scanned.a import One\n"))
    (package / "a.py").write_text(METHOD.format(cls="One", name="one", more="class Plain: pass\n"))
    assert scan.files("scanned") == ["a", "b"]
    assert {name: cls.__name__ for name, cls in scan.named_classes("scanned", "things").items()} == {
        "a two": "Two",
        "one": "One",
    }


def test_one_name_twice_is_a_mistake(package: Path) -> None:
    for file in "ab":
        (package / f"{file}.py").write_text(METHOD.format(cls="One", name="one", more=""))
    with pytest.raises(AssertionError, match="two things are called one"):
        scan.named_classes("scanned", "things")


def test_names_of_files_need_no_import(package: Path) -> None:
    (package / "broken.py").write_text("1 / 0")
    assert scan.files("scanned") == ["broken"]


def test_threads_parse_one_after_another(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, together, parse = 0, 0, ast.parse

    def slowly(*given: Any, **named: Any) -> ast.AST:
        nonlocal running, together
        running += 1
        time.sleep(0.02)  # long enough for every other thread to begin
        together, running = max(together, running), running - 1
        return parse(*given, **named)

    (package / "a.py").write_text(METHOD.format(cls="One", name="one", more=""))
    cls = scan.named_classes("scanned", "things")["one"]
    monkeypatch.setattr(ast, "parse", slowly)
    work = [
        lambda: scan.declared("scanned"),
        lambda: scan.declared_mappings("scanned", "x"),
        lambda: scan.comments(cls),
    ]
    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(call) for call in work * 2]:
            done.result()
    assert together == 1
