"""A function of the user's judges the output. It is code, so it runs only where --allow-code is given."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, field_validator

from pat.common.keys import key
from pat.prompts.checks import Check


class Python(Check, frozen=True):
    """`function(output, prompt)` of a file beside the mix returns True, or False, or why the output is not right."""

    name: Literal["python"] = "python"
    function: str = key(..., "FILE.py:NAME, the file in the mix's folder or below it")

    _called: list[Callable[..., Any]] = PrivateAttr(default_factory=list)

    @field_validator("function")
    @classmethod
    def _is_a_place(cls, function: str) -> str:
        file, _, name = function.partition(":")
        if not (file.endswith(".py") and name.isidentifier()):
            raise ValueError(f"{function!r} must be FILE.py:NAME, as checks.py:polite")
        return function

    def ready(self, folder: Path, allow_code: bool) -> None:
        """Load the function. Raises ValueError."""
        if not allow_code:
            raise ValueError(f"the check runs {self.function}, which is code: add --allow-code if you trust it")
        file, _, name = self.function.partition(":")
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{file} is outside the mix's folder {folder}: put it there")
        if not path.is_file():
            raise ValueError(f"there is no file {path}, which the check {self.function} names")
        function = getattr(_module(path), name, None)
        if not callable(function):
            raise ValueError(f"{path} has no function {name}, which the check {self.function} names")
        self._called[:] = [function]

    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """What the function says. Raises ValueError where it raises, or says neither yes nor no."""
        assert self._called, "ready() comes first"
        try:
            said = self._called[0](output, dict(prompt))
        except Exception as error:
            raise ValueError(f"the check {self.function} raised {type(error).__name__}: {error}") from error
        if not isinstance(said, bool | str):
            raise ValueError(f"the check {self.function} returned {said!r}: return True, False, or why not")
        return None if said is True else said or f"{self.function} says no"


@cache
def _module(path: Path) -> Any:
    name = f"pat_check_{path.stem}_{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module
