"""Versions as artifacts of Weights & Biases: `NAME:pat-3` is version 3, aliases are aliases there.

The only file of the registry that imports wandb.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pat.common import secrets
from pat.common.wandb_key import has_api_key
from pat.registry.backend import BackendError

TYPE = "model"
LOADED_S = 60  # to wait for a run to begin


class WandbMirror:
    """A `Mirror` in one project."""

    def __init__(self, project: str, entity: str | None = None, mode: str = "online") -> None:
        """ValueError where wandb may not go online, or has no key. mode `offline`, which tests use, can only put."""
        said = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and said != "online":
            raise ValueError(f"WANDB_MODE is {said}, and artifacts are published online: unset it")
        if mode == "online" and not has_api_key(os.environ):
            raise ValueError("wandb has no key: `wandb login`, or set WANDB_API_KEY")
        import wandb

        self._wandb: Any = wandb
        self._place = {"project": project, "entity": entity}
        self._mode = mode
        self._api: Any = None
        if mode == "online":
            with self._said():
                self._api = wandb.Api(overrides={key: value for key, value in self._place.items() if value})

    def has(self, name: str, number: int) -> str | None:
        """What the artifact says of its variant; one that was not logged completely has no alias."""
        with self._said():
            if not self._api.artifact_exists(_path(name, number), type=TYPE):
                return None
            return str(self._api.artifact(_path(name, number), type=TYPE).metadata.get("pat.variant_sha256", ""))
        raise AssertionError

    def put(self, name: str, number: int, folder: Path, said: Mapping[str, str]) -> None:
        """Log it in a run of its own, and wait until the server has it."""
        with self._said(), tempfile.TemporaryDirectory(prefix="pat-publish-") as scratch:
            settings = self._wandb.Settings(console="off", silent=True, init_timeout=LOADED_S)
            run = self._wandb.init(
                **self._place, name=f"{name} version {number}", job_type="pat registry publish", dir=scratch,
                mode=self._mode, settings=settings,
            )  # fmt: skip
            code = 1
            try:
                artifact = self._wandb.Artifact(name, type=TYPE, metadata=dict(said))
                artifact.add_dir(str(folder), policy="immutable")  # uploaded from there, not copied first
                logged = run.log_artifact(artifact, aliases=[_alias(number)])
                if self._mode == "online":
                    logged.wait()
                code = 0
            finally:
                run.finish(exit_code=code)

    def point(self, name: str, number: int, aliases: Collection[str]) -> None:
        """Set aliases; W&B removes each from the version that had it."""
        with self._said():
            artifact = self._api.artifact(_path(name, number), type=TYPE)
            missing = [alias for alias in aliases if alias not in artifact.aliases]
            if missing:
                artifact.aliases.extend(missing)
                artifact.save()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Errors of wandb in a line, without keys."""
        try:
            yield
        except (OSError, KeyboardInterrupt):
            raise
        except Exception as error:  # wandb's, and those of the libraries that it lets through
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackendError(f"wandb: {secrets.hide(said)}; the same command goes on from there") from None


def _alias(number: int) -> str:
    return f"pat-{number}"


def _path(name: str, number: int) -> str:
    return f"{name}:{_alias(number)}"
