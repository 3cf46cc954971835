"""The configs of the models that recipes name, so that a plan needs neither network nor token.

conf/architectures/ORGANISATION/NAME/config.json, as the hub's model of that name has it.
"""

from __future__ import annotations

from pathlib import Path

from pat.config.places import conf_dir
from pat.schema import Config


def planned(config: Config) -> Config:
    """The same config, with a known model replaced by its folder; one with a revision is left unchanged."""
    path = config.model.path
    if path is None or config.model.revision or Path(path).exists():
        return config
    folder = conf_dir() / "architectures" / path
    return config.changed(model__path=str(folder)) if (folder / "config.json").is_file() else config
