"""The configs of the models that recipes name, so that a plan needs neither network nor token.

conf/architectures/ORGANISATION/NAME/config.json, as the hub's model of that name has it.
"""

from __future__ import annotations

from pathlib import Path

from pat.config.places import conf_dir
from pat.schema import Config


def planned(config: Config) -> Config:
    """The same config, with a known model and teacher replaced by their folders; not where a revision is given."""
    model, distill = config.model, config.distill
    if (folder := _folder(model.path, model.revision)) is not None:
        config = config.changed(model__path=folder)
    if (folder := _folder(distill.teacher, distill.revision)) is not None:
        config = config.changed(distill__teacher=folder)
    return config


def _folder(path: str | None, revision: str | None) -> str | None:
    if path is None or revision or Path(path).exists():
        return None
    folder = conf_dir() / "architectures" / path
    return str(folder) if (folder / "config.json").is_file() else None
