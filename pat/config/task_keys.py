"""The schema with the keys that only a task's own file declares: fields that `TaskConfig` does not have.

    window: int = 4  # tokens on either side        task.window, a whole number or null, only with this task

A key that is not set is null, and the field's default holds: null tells every task that the key was not given.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Optional, Union, get_type_hints

import pydantic

from pat.common import scan
from pat.common.keys import key
from pat.schema import Config, TaskConfig


@cache
def config_model() -> type[Config]:
    """`Config`; where a task declares keys of its own, a subclass whose `task` has them, too."""
    if scan.declared_fields("pat.tasks") <= set(TaskConfig.model_fields):
        return Config  # and no task is imported to find out
    from pat.tasks import base  # heavy

    types: dict[str, list[Any]] = {}
    said: dict[str, str] = {}
    for cls in base.classes().values():
        hints, comments = get_type_hints(cls), scan.comments(cls)
        for f in fields(cls):
            if f.name not in TaskConfig.model_fields:
                types.setdefault(f.name, []).append(hints[f.name])
                said.setdefault(f.name, comments.get(f.name, "") + _default(f))
    keys: dict[str, Any] = {
        name: (
            Optional[Union[tuple(hints)]],  # noqa: UP007, UP045
            key(None, f"{', '.join(base.taking(f'task.{name}'))}: {said[name]}", only_with="task"),
        )
        for name, hints in types.items()
    }
    task = pydantic.create_model("TaskConfig", __base__=TaskConfig, __doc__=TaskConfig.__doc__, **keys)
    whole: dict[str, Any] = {"task": (task, pydantic.Field(default_factory=task))}
    return pydantic.create_model("Config", __base__=Config, __doc__=Config.__doc__, **whole)


def _default(f: Field[Any]) -> str:
    """What null stands for: the field's default, in words."""
    value = f.default if f.default_factory is MISSING else f.default_factory()
    return "" if value is None or value is MISSING else f"; null: {value}"
