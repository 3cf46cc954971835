"""The commands of `pat`, one file each, found by their names.

A command's file has a docstring, whose first line `pat --help` shows, and `main(arguments) -> exit code`. It imports
what is slow to import inside its functions.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pat.common import scan


def names() -> list[str]:
    """All commands, in the order of the alphabet."""
    return scan.files(__name__)


def load(name: str) -> ModuleType:
    """The file of a command."""
    return importlib.import_module(f"{__name__}.{name}")


def summary(name: str) -> str:
    """What a command does, in a line."""
    return (load(name).__doc__ or "").partition("\n")[0]
