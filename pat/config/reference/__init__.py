"""Writes the files generated from the schema: conf/config.yaml, and config.md, prompts.md and the JSON schema of docs/.

python -m pat.config.reference          after a change of pat/schema.py or of a method's fields
"""

from __future__ import annotations

import json
from pathlib import Path

from pat.config.reference.editors import json_schema
from pat.config.reference.pages import config_md, keys_about, prompts_md
from pat.config.reference.primary import config_yaml

ROOT = Path(__file__).resolve().parents[3]
__all__ = ["ROOT", "config_md", "config_yaml", "files", "json_schema", "keys_about", "prompts_md", "write"]


def files() -> dict[Path, str]:
    """What each file holds, by its path in a checkout."""
    return {
        Path("conf/config.yaml"): config_yaml(),
        Path("docs/reference/config.md"): config_md(),
        Path("docs/reference/prompts.md"): prompts_md(),
        Path("docs/reference/config.schema.json"): json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n",
    }


def write(root: Path = ROOT) -> None:
    """Write all files below a checkout."""
    for path, text in files().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
