"""The one function that is replaced: `deepspeed.initialize`, until the engine of each attached model is made."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import deepspeed
from torch import nn


class Waiting(Protocol):
    """What waits for its model's engine."""

    model: nn.Module | None
    engine: Any

    def prepare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the engine is made with."""
        ...

    def put_back(self) -> None:
        """No engine was made of what `prepare` gave: the optimizer is as it was."""
        ...

    def took(self, engine: Any) -> None:
        """The engine has been made."""
        ...


_waiting: list[Waiting] = []
_OURS = "_pat_waits"  # an attribute of the function that is put in its place


def await_initialize(pruning: Waiting) -> None:
    """Replace deepspeed.initialize until it is called with the model and an optimizer. The last one for a model wins:
    a notebook's cell may run again. Raises ValueError where the script has the function by a name of its own, and for a
    model in which an earlier one has failed."""
    if not hasattr(deepspeed.initialize, _OURS):  # not by _waiting: somebody may have put another in its place
        _check_other_names(deepspeed.initialize)
        deepspeed.initialize = _pass_through(deepspeed.initialize)
    for other in [each for each in _waiting if each.model is pruning.model]:
        _refuse_again(other)
        _waiting.remove(other)
    _waiting.append(pruning)


def _check_other_names(plain: Callable[..., Any]) -> None:
    """ValueError where a program has the function by a name of its own, by which the pruner would be passed over."""
    for name, module in list(sys.modules.items()):
        if not issubclass(type(module), ModuleType):  # cffi's libraries only say that they are modules
            continue
        holds: dict[str, Any] = object.__getattribute__(module, "__dict__")  # which loads none that is lazy
        installed = {"site-packages", "dist-packages"} & set(Path(holds.get("__file__") or "").parts)
        theirs = bool(installed) or name.partition(".")[0] == "deepspeed" or name == getattr(plain, "__module__", None)
        if not theirs and any(value is plain for value in list(holds.values())):
            raise ValueError(
                f"{name} has deepspeed's `initialize` by a name of its own, in which the pruner cannot work: import "
                "deepspeed, and call deepspeed.initialize(...)"
            )


def _refuse_again(pruning: Waiting) -> None:
    """ValueError for a model in which a pruner has not come to its start: what it left there would work on."""
    if pruning.engine is not None:
        raise ValueError("the pruner failed in an earlier engine of this model: make the model anew, then attach")


def _parameter(model: Any) -> Any:
    """A model's first parameter, by which a wrapper of it is known; an own object where there is none."""
    return next(iter(model.parameters()), object()) if isinstance(model, nn.Module) else object()


def _trains(arguments: Mapping[str, Any]) -> bool:
    """Whether the engine has an optimizer, or may have one named in a file, which `prepare` refuses."""
    config = arguments.get("config") or arguments.get("config_params")
    config = config or getattr(arguments.get("args"), "deepspeed_config", None) or {}
    return arguments.get("optimizer") is not None or not isinstance(config, dict) or "optimizer" in config


def _pass_through(plain: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def initialize(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        mine = next((p for p in _waiting if p.model is arguments.get("model")), None)
        wrapped = mine is None and any(_parameter(p.model) is _parameter(arguments.get("model")) for p in _waiting)
        if wrapped and _trains(arguments):
            raise ValueError(
                "this engine is given a wrapper of the model that `attach` was given, in which the pruner cannot work: "
                "attach to the wrapper, or give deepspeed.initialize the model itself"
            )
        if mine is None or not _trains(arguments):
            return plain(*args, **kwargs)
        _refuse_again(mine)
        try:
            result = plain(**mine.prepare(arguments))
        except BaseException:
            mine.put_back()
            raise
        mine.took(result[0])
        _waiting.remove(mine)  # not before: what fails is tried again, and must not train without the pruner then
        if not _waiting:
            deepspeed.initialize = plain
        return result

    setattr(initialize, _OURS, True)
    return initialize
