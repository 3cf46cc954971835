"""YAML that people write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"  # `<<`


def read_yaml(path: Path) -> Any:
    """What a file says, in which no mapping has a key twice: of two, YAML's own reader keeps the last without a word.

    Raises ValueError where it is not UTF-8, or not YAML.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            _check(node, set())
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: convert it") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _check(node: Any, checked: set[int]) -> None:
    """Before anything is made of the nodes, which merges mappings into others."""
    if id(node) in checked or not isinstance(node, yaml.CollectionNode):
        return
    checked.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set[tuple[str, str]]()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add((key.tag, key.value))
            _check(value, checked)
    else:
        for item in node.value:
            _check(item, checked)
