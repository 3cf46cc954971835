"""What is found by scanning a package: a new method, task, family or command is one new file and no edit elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


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
    roots = importlib.import_module(package).__path__
    paths = [path for name in files(package) for root in roots if (path := Path(root, f"{name}.py")).is_file()]
    return sorted(
        name for path in paths for name in re.findall(r'^    name: str = "(\w+)"', path.read_text(), re.MULTILINE)
    )


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


def _named(module: types.ModuleType) -> Iterator[tuple[str, type]]:
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__ and is_dataclass(cls):
            name = next((f.default for f in fields(cls) if f.name == "name"), None)
            if isinstance(name, str):
                yield name, cls
