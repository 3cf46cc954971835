"""How `pat.schema` declares a key: default, description, bounds, and the conditions under which it has an effect.

    num_steps: int = key(MISSING, "optimizer steps", ge=1)
    head_lr: float | None = key(None, "of a new head; null: lr", gt=0, only_with="task")

Hydra merges recipes and the command line in typed nodes (`structured`): they know which keys exist, also in a pruner
that a recipe only names in part, and take "4" from an environment variable for 4. The result is validated by the
models: types again, without any conversion, bounds, choices, and the settings of pruners' methods.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Optional, TypeVar, Union, get_args, get_origin

from omegaconf import MISSING
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from pat.common.annotations import options
from pat.common.errors import invalid

AnySection = TypeVar("AnySection", bound="Section")
_TYPED = (str, int, float, bool, list, dict, Any)  # what OmegaConf checks; the models check the rest


def key(
    default: Any,
    description: str,
    *,
    composed: str | None = None,
    only_with: str | None = None,
    inherited: bool = False,
    names_in: str | None = None,
    **bounds: Any,
) -> Any:
    """A key of a section. `default` MISSING: the user must choose.

    composed: the default in conf/config.yaml, where Hydra fills it in. only_with: the key has an effect only where
    another one has, or has not, one of these values, or is set: `engine.dtype=bf16|fp16`, `.source!=json|csv` (of the
    same section), `distill.teacher`, `.teacher or .cache`; `task`: where the task takes the key
    (`pat.tasks.base.taking`). inherited: a recipe may leave it void for the recipes that build on it; only the command
    line may not. names_in: the package whose files declare the names that the key may have. Bounds are pydantic's: ge,
    gt, le, lt, min_length.
    """
    extra = {"composed": composed, "only_with": only_with, "inherited": inherited or None, "names_in": names_in}
    given: Any = {name: value for name, value in extra.items() if value is not None}
    return Field(default, description=description, json_schema_extra=given or None, **bounds)


class Section(BaseModel, frozen=True):
    """Keys that belong together, never assigned to. Nothing is converted, except whole numbers where any number will
    do.

    A subclass says `frozen=True`, too: a type checker then reports an assignment before it raises.
    """

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    def changed(self: AnySection, **values: Any) -> AnySection:
        """A validated copy with other values; `train__num_steps=3` is a key of the section `train`. ValueError.

        So are a mapping's: `pruners__ffn=PrunerConfig(...)` adds one or replaces it, `pruners__ffn__schedule=...`
        replaces a setting of it.
        """
        content = self._given()
        for name, value in values.items():
            place, (*above, last) = content, name.split("__")
            for part in above:
                inner = place[part]
                place[part] = inner._given() if isinstance(inner, Section) else dict(inner)
                place = place[part]
            place[last] = value
        try:
            return type(self).model_validate(content)
        except ValidationError as error:
            raise ValueError(invalid(error, type(self))) from error

    def plain(self) -> dict[str, Any]:
        """Nested mappings, as they are written to config.yaml; "???" where a value is missing."""
        return self.model_dump(warnings=False)

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self if not (isinstance(value, str) and value == MISSING)}


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"is {'not a number' if math.isnan(value) else 'infinite'}, but must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]


@dataclasses.dataclass(frozen=True)
class Method:
    """The annotation of a pruner's criterion, granularity, gate, budget or schedule.

    A union of the registered dataclasses, told apart by `name`, that is looked up when a value comes: the methods
    import much, and every part of the program imports the schema. `pat.pruning.registry` says how (`read_methods_by`).
    """

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Pydantic's hook."""
        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """`pat.config.reference` puts the methods in its place."""
        return {"x-method": self.kind}

    def parse(self, value: Any) -> Any:
        """The method that a mapping or a name describes; null and missing values are returned unchanged."""
        return value if value is None or value == MISSING else _read(self.kind, value)


def read_methods_by(reader: Callable[[str, Any], Any]) -> None:
    """`reader(kind, value)` is the method from now on. The module that knows the methods calls this when it is
    imported."""
    global _read
    _read = reader


def _unread(kind: str, value: Any) -> Any:
    raise RuntimeError(f"the {kind} {value!r} cannot be read before pat.pruning.registry is imported: import it first")


_read: Callable[[str, Any], Any] = _unread


@cache
def structured(model: type[Section]) -> type:
    """The same keys as a dataclass for OmegaConf, with types that it knows."""
    made = []
    for name, info in model.model_fields.items():
        made.append((name, _node(info.annotation), dataclasses.field(default_factory=lambda info=info: _default(info))))
    return dataclasses.make_dataclass(model.__name__, made)


def default_of(info: FieldInfo) -> Any:
    """The default of a key, "???" where there is none."""
    return info.get_default(call_default_factory=True, validated_data={})


def _default(info: FieldInfo) -> Any:
    value = default_of(info)
    return structured(type(value))() if isinstance(value, Section) else value


def _node(annotation: Any) -> Any:
    """OmegaConf's type of a key: no Literal, and of unions only those of numbers."""
    types = [option for option in options(annotation) if option is not type(None)]
    optional = len(types) < len(options(annotation))
    if get_origin(types[0]) is Literal and len(types) == 1:
        types = [type(get_args(types[0])[0])]
    if isinstance(types[0], type) and issubclass(types[0], Section):
        return structured(types[0])
    if get_origin(types[0]) is dict:
        value = get_args(types[0])[1]
        section = isinstance(value, type) and issubclass(value, Section)
        return dict[str, structured(value) if section else Any] if not optional else Any  # type: ignore[misc]
    if (len(types) > 1 and set(types) != {int, float}) or (get_origin(types[0]) or types[0]) not in _TYPED:
        return Any
    kind = Union[tuple(types)]  # noqa: UP007
    return Optional[kind] if optional else kind  # noqa: UP045
