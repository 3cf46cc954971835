"""A version by its name on the command line: NAME/VERSION, NAME/ALIAS, or an alias that only one name has."""

from __future__ import annotations

from pathlib import Path

from pat.common.text import did_you_mean
from pat.registry.registry import Registry, Version


def opened(root: Path, uri: str | None) -> Registry:
    """The registry in a directory, on MLflow. ValueError for an invalid URI."""
    from pat.registry import mlflow_backend

    found = mlflow_backend.address(uri, root)
    return Registry(root, lambda new: mlflow_backend.MlflowBackend(found, new))


def version(registry: Registry, given: str, what: str) -> Version:
    """The version; `what` begins the sentence of a ValueError, as `--against champion`."""
    name, _, which = given.rpartition("/")
    if not name:
        names = registry.names()
        having = [each for each in names if any(given in one.aliases for one in registry.versions(each))]
        if len(having) != 1:
            known = [f"{each}/{alias}" for each in names for one in registry.versions(each) for alias in one.aliases]
            close = did_you_mean(f"{names[0]}/{given}", known) if names else ""
            said = f"it has {', '.join(known or names) or 'nothing'}{close}"
            if names and not known:
                said = f"no version of {', '.join(names)} has an alias: give NAME/NUMBER, or see `pat registry promote`"
            if having:
                said = f"{', '.join(having)} have it: give NAME/{given}"
            raise ValueError(f"{what} is not a folder, nor the alias of one name in {registry.root}: {said}")
        name, which = having[0], given
    return registry.version(name, which)
