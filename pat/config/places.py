"""Where conf/ and recipes/ are, in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The Hydra config directory: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for path in (package / "conf", package.parent / "conf"):
        if (path / "config.yaml").is_file():
            return path
    raise ValueError(f"conf/config.yaml is neither in {package} nor beside it: install the package again")


def recipes() -> list[str]:
    """The recipes that come with the package."""
    return options("recipe")


def options(group: str) -> list[str]:
    """The files of a group of conf/."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
