"""Copies versions and aliases to a second place, for others to see. The registry itself stays authoritative."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pat.registry.registry import Registry, Version


class Mirror(Protocol):
    """What `publish` needs of that place, such as W&B's artifacts. Each call raises BackendError."""

    def has(self, name: str, number: int) -> str | None:
        """The variant_sha256 of that version there, "" where it says none; None: there is none that is whole."""
        ...

    def put(self, name: str, number: int, folder: Path, said: Mapping[str, str]) -> None:
        """Store a version's files and record; they are complete when this returns."""
        ...

    def point(self, name: str, number: int, aliases: Collection[str]) -> None:
        """Let these aliases stand for that version, and for no other one."""
        ...


def publish(registry: Registry, versions: Sequence[Version], mirror: Mirror, say: Callable[[str], None]) -> None:
    """Copy missing versions, then the aliases. Repeating it changes nothing, and completes an interrupted call.

    Raises ValueError where a number is another model there, DamagedError for a version whose files are not what was
    added, BackendError where the mirror fails.
    """
    for version in versions:
        label = f"{version.name} version {version.number}"
        held = mirror.has(version.name, version.number)
        if held is not None:
            if held not in ("", version.variant_sha256):
                raise ValueError(
                    f"{label} is there already, with other files, as of another registry: give another --project"
                )
            say(f"{label} is there already")
            continue
        mirror.put(version.name, version.number, registry.checked(version), _said(version))
        say(f"{label} is published")
    for version in versions:
        if version.aliases:
            mirror.point(version.name, version.number, version.aliases)
            say(f"{', '.join(version.aliases)} of {version.name} is version {version.number}")


def _said(version: Version) -> dict[str, str]:
    """The lineage as flat values: hashes, sparsity, and who added it when."""
    origin = version.record["lineage"]
    shown = {
        "version": version.number,
        "added_by": version.added_by,
        "added_s": version.added_s,
        "variant_sha256": version.variant_sha256,
        "base_sha256": origin["base_model"]["sha256"],
        "config_sha256": origin["config"]["sha256"],
        "mask_sha256": origin["masks"]["sha256"],
        "sparsity": origin["masks"]["sparsity"],
        **{f"metric.{key}": value for key, value in (version.record["figures"]["metrics"] or {}).items()},
    }
    return {f"pat.{key}": str(value) for key, value in shown.items() if value is not None}
