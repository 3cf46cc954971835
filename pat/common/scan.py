"""Finds what a package holds by scanning it: a new method, task, family or command is one new file."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Python 3.11 counts the depth of a syntax tree once for all threads: two parses at a time may end in a SystemError.
_parsing = threading.Lock()


def files(package: str) -> list[str]:
    """The names of a package's modules, sorted, without private ones (`_help`); none is imported but the package."""
    names = (info.name for info in pkgutil.iter_modules(importlib.import_module(package).__path__))
    return sorted(name for name in names if not name.startswith("_"))


def modules(package: str) -> Iterator[types.ModuleType]:
    """Every module of a package, imported, in the order of their names."""
    for name in files(package):
        yield importlib.import_module(f"{package}.{name}")


def named_classes(package: str, what: str) -> Mapping[str, type]:
    """Every dataclass whose field `name` has a default, by that default, sorted, from the file that defines it."""
    return by_name(package, _named, what)


def declared(package: str) -> list[str]:
    """The names of `named_classes`, sorted, read in the files: nothing is imported but the package."""
    return sorted(name for name, _ in _written(package))


def declared_fields(package: str) -> set[str]:
    """The fields of `named_classes`, read in the same way: those that stand in the class itself."""
    return {field for _, names in _written(package) for field in names}


def declared_mappings(package: str, attribute: str) -> dict[str, Any]:
    """A class attribute that is written as a mapping of constants, of all classes in a package together.

    Read in the files, as `declared` does: nothing is imported but the package.
    """
    found: dict[str, Any] = {}
    for path in _paths(package):
        found |= _mappings(path).get(attribute, {})
    return found


def comments(cls: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, base classes included."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            with _parsing:  # it looks for a class in the syntax tree of its file
                lines = inspect.getsource(base).splitlines()
            said |= {match[1]: match[2] for line in lines if (match := re.match(r"    (\w+): .*?  # (.+)", line))}
    return said


def by_name(
    package: str, named: Callable[[types.ModuleType], Iterable[tuple[str, Any]]], what: str
) -> Mapping[str, Any]:
    """What `named` finds in each module, sorted; a name that is found twice is a mistake in the package."""
    named_values: dict[str, Any] = {}
    for module in modules(package):
        for name, value in named(module):
            assert name not in named_values, f"two {what} are called {name}"
            named_values[name] = value
    return types.MappingProxyType(dict(sorted(named_values.items())))


def _written(package: str) -> Iterator[tuple[str, list[str]]]:
    """(name, fields) of each class whose field `name` has a default, as the files have it."""
    for path in _paths(package):
        yield from _classes(path)


def _paths(package: str) -> list[Path]:
    roots = importlib.import_module(package).__path__
    return [path for name in files(package) for root in roots if (path := Path(root, f"{name}.py")).is_file()]


def _tree(path: Path) -> ast.Module:
    with _parsing:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _mappings(path: Path) -> dict[str, dict[str, Any]]:
    """{attribute: mapping} of the classes in one file; read once in a process."""
    found: dict[str, dict[str, Any]] = {}
    for cls in _tree(path).body:
        for item in cls.body if isinstance(cls, ast.ClassDef) else []:
            if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
                continue
            if isinstance(item.value, ast.Dict):
                try:
                    content = ast.literal_eval(item.value)
                except ValueError:  # not a mapping of constants only
                    continue
                found.setdefault(item.target.id, {}).update(content)
    return found


@cache
def _classes(path: Path) -> list[tuple[str, list[str]]]:
    """(name, fields) of the classes in one file; read once in a process."""
    found: list[tuple[str, list[str]]] = []
    for cls in _tree(path).body:
        if isinstance(cls, ast.ClassDef):
            values = {
                item.target.id: item.value
                for item in cls.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                if not ast.unparse(item.annotation).startswith("ClassVar")
            }
            name = values.get("name")
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append((name.value, list(values)))
    return found


def _named(module: types.ModuleType) -> Iterator[tuple[str, type]]:
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__ and is_dataclass(cls):
            name = next((f.default for f in fields(cls) if f.name == "name"), None)
            if isinstance(name, str):
                yield name, cls
