"""What the registry needs of a backend for names, versions and aliases, such as MLflow's model registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pat.run.directory import ExitCode


class BackendError(ValueError):
    """The database or the server failed; the request itself was valid."""

    exit_code = ExitCode.ERROR


@dataclass(frozen=True)
class Entry:
    """One version of a name."""

    number: int
    tags: Mapping[str, str]
    created_s: float  # since 1970


class Backend(Protocol):
    """Each call is one transaction, which happens as a whole or not at all. Raises BackendError."""

    def names(self) -> list[str]:
        """All names, sorted."""
        ...

    def versions(self, name: str) -> list[Entry]:
        """Those of a name, oldest first; none of a name that is not there."""
        ...

    def add(self, name: str, source: str, tags: Mapping[str, str]) -> int:
        """A new version with these tags; its number. Makes the name where it is new."""
        ...

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> number of the version; none of a name that is not there."""
        ...

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Let the alias stand for this version from now on."""
        ...

    def notes(self, name: str) -> dict[str, str]:
        """What was noted of a name by `note`."""
        ...

    def note(self, name: str, key: str, value: str | None) -> None:
        """Keep a text of at most 5,000 characters; None takes it away."""
        ...
