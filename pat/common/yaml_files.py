"""YAML that people write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> Any:
    """What a file says, in which no mapping has a key twice: of two, YAML's own reader keeps the last without a word.

    Raises ValueError where it is not UTF-8, or not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Once)  # noqa: S506  it is a SafeLoader
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: convert it") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


class _Once(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)
