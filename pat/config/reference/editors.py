"""docs/reference/config.schema.json: what editors check a recipe by, and complete its keys from."""

from __future__ import annotations

from typing import Any

from pat.common import scan
from pat.common.keys import MISSING
from pat.config import auto
from pat.config.task_keys import config_model
from pat.pruning import registry

_LATER = r"^(\$\{|\?\?\?)"  # what a recipe may hold for any value: ${...}, or nothing yet


def json_schema() -> dict[str, Any]:
    """For editors: what may stand in a recipe. Nothing is required, for a recipe only says what differs."""
    made: Any = config_model().model_json_schema()
    for kind in registry.PACKAGES:
        if kind != "structure":
            for name in registry.names(kind):
                method = registry.settings(kind, name).model_json_schema()
                made["$defs"] |= {f"{kind}.{name}": {**method, "title": f"{kind} {name}"}}
    made["properties"] |= {"defaults": {"type": "array"}, "hydra": {"type": "object"}}
    made["title"] = "A recipe of pat"
    _for_editors(made)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _for_editors(node: Any) -> None:
    """Also ${...} where a number stands; no default where the user must choose; nothing of our own."""
    if isinstance(node, list):
        for item in node:
            _for_editors(item)
    elif isinstance(node, dict):
        for key in ("composed", "only_with", "inherited"):
            if not isinstance(node.get(key), dict):
                node.pop(key, None)
        # Versions of pydantic differ in what says the same.
        if node.get("additionalProperties") is True:
            del node["additionalProperties"]
        for bound in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if isinstance(node.get(bound), float) and node[bound].is_integer():
                node[bound] = int(node[bound])
        if node.get("default") == MISSING:
            del node["default"]
        if kind := node.pop("x-method", None):  # a name, or fields of one: recipes leave `name` to the defaults list
            methods = [{"$ref": f"#/$defs/{kind}.{name}"} for name in registry.names(kind)]
            node["anyOf"] = [{"type": "null"}, {"enum": auto.names(kind)}, *methods]
        if package := node.pop("names_in", None):
            node.get("items", node)["anyOf"] = [{"enum": scan.declared(package)}, {"pattern": _LATER}]
        if isinstance(node.get("enum"), list):
            node["enum"] = sorted(node["enum"], key=str)  # see choices
        if node.get("type") in ("integer", "number", "boolean"):
            node |= {"type": [node["type"], "string"], "pattern": _LATER}
        for item in node.values():
            _for_editors(item)
