"""Add, promote and roll back, so that a kill, a full disk or another process at any moment loses nothing.

add      files and record first, under the hashes of their contents; the version last, in one transaction
promote  see moves.py
"""

from __future__ import annotations

import getpass
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pat.common import files
from pat.common.text import did_you_mean
from pat.registry import gates, moves, variant
from pat.registry.backend import Backend, BackendError, Entry
from pat.registry.gates import RefusedError
from pat.registry.moves import Promotion
from pat.registry.store import DamagedError, Store, copy_in, copy_out, faults

FORMAT = 1
RECORD, VARIANT = "pat.record", "pat.variant"
REASON = 1000  # characters at most: a note of 5,000 must hold it
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
ALIAS = re.compile(r"(?!latest$)(?![vV]?\d+$)[A-Za-z0-9][\w-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Version:
    """One version of a name, with all that is recorded of it."""

    name: str
    number: int
    added_by: str
    added_s: float  # since 1970
    variant_sha256: str
    record: Mapping[str, Any]
    aliases: tuple[str, ...] = ()


class Registry:
    """Names with versions and aliases: files in a directory, the rest in a backend."""

    def __init__(
        self,
        root: Path,
        connect: Callable[[bool], Backend],  # True: create the files of a new registry. Called alone in the registry
    ) -> None:
        self.root, self.store = root, Store(root)
        self._connect, self._backend = connect, None

    def add(self, name: str, folder: Path, evidence: Mapping[str, Any]) -> tuple[Version, bool]:
        """A folder as a new version, and True; if it is there already with the same evidence: its version, and
        False."""
        _check_name(name)
        names = variant.listed(folder)
        files.make(self.root, "--dir")
        with self._alone(new=True) as backend:
            backend.aliases(name)  # a database or server that cannot be reached is noticed before much is copied
        with self.store.staging(folder) as staged:
            manifest = {each: copy_in(folder / each, staged / each) for each in names}
            files.sync_tree(staged)
            variant.check_whole(staged, manifest)
            record = {
                "format": FORMAT,
                "files": manifest,
                "lineage": variant.lineage(staged, manifest),
                "figures": variant.figures(staged),
                "evidence": dict(evidence),
            }
            if "gate" in evidence:
                gates.check_weights(evidence["gate"], record, str(folder))
            for kind, command in (("profile", "profile"), ("metrics", "evaluate")):
                if kind in evidence:
                    gates.check_measured(command, evidence[kind], record, str(folder))
            with self._alone(new=True) as backend:
                with self.store.placed(staged, manifest, partial(_used, backend, name)) as content:
                    entry, new = self._register(backend, name, content, record)
                return self._version(name, entry, backend.aliases(name)), new

    def _register(self, backend: Backend, name: str, content: str, record: Mapping[str, Any]) -> tuple[Entry, bool]:
        sha256 = self.store.record(record)
        for entry in backend.versions(name):
            if entry.tags.get(RECORD) == sha256:
                return entry, False
        tags = _tags(record) | {RECORD: sha256, VARIANT: content, "pat.added_by": _who()}
        return Entry(backend.add(name, f"pat-variant:/{content}", tags), tags, time.time()), True

    def names(self) -> list[str]:
        """All names under which pat has added something."""
        with self._alone() as backend:
            names = filter(NAME.fullmatch, backend.names())
            return [name for name in names if any(RECORD in each.tags for each in backend.versions(name))]

    def versions(self, name: str) -> list[Version]:
        """All versions of a name that pat has added, oldest first. ValueError where there is none."""
        with self._alone() as backend:
            return [self._version(name, each, backend.aliases(name)) for each in self._entries(backend, name)]

    def version(self, name: str, which: str) -> Version:
        """The version of a number or an alias. ValueError where there is none."""
        with self._alone() as backend:
            return self._find(backend, name, which)

    def history(self, name: str) -> list[Promotion]:
        """All moves of all aliases, oldest first."""
        with self._alone() as backend:
            moves.finish(backend, name)
            return sorted(moves.history(backend.notes(name)), key=lambda each: (each.when_s, each.number))

    def promote(
        self,
        name: str,
        which: str,
        alias: str,
        reason: str = "",
        gate: Mapping[str, Any] | None = None,
        expected: str | None = None,
    ) -> Promotion:
        """Let an alias stand for a version whose files are whole and whose gate, if there is one, passed.

        `expected`: what it must stand for now (a number, or none), else RefusedError. Where it already stands for the
        version, returns its last move; where that was made outside of pat, notes this one, with reason and gate.
        """
        _check_alias(alias, reason)
        version = self.version(name, which)
        label = f"{name} version {version.number}"
        recorded = version.record["evidence"].get("gate")
        said = gate if gate is not None else recorded
        for each in (recorded, said):  # another gate does not undo that of the record
            if each is not None:
                gates.check(each, version.record, label)
        self.checked(version)
        with self._alone() as backend:
            moves.finish(backend, name)
            past, now = moves.past(backend, name, alias)
            if now == version.number and past[-1].kind != "outside":
                return past[-1]
            _check_expected(name, alias, now, expected)
            return moves.move(
                backend, name, Promotion(
                    len(past) + 1, alias, "promote", now, version.number, _who(), time.time(), reason,
                    "none" if said is None else f"passed {gates.sha256(said)[:12]}",
                ),
            )  # fmt: skip

    def rollback(self, name: str, alias: str, reason: str = "", expected: str | None = None) -> Promotion:
        """Let an alias stand for what it stood for before its last promotion. Again: for the one before that."""
        _check_alias(alias, reason)
        with self._alone() as backend:
            self._entries(backend, name)
            done = [each for each in moves.finish(backend, name) if (each.alias, each.kind) == (alias, "rollback")]
            if done:  # a kill had stopped this command
                return done[0]
            past, now = moves.past(backend, name, alias)
            if now is None:
                raise ValueError(f"{name} has no alias {alias}: there is nothing to roll back")
            _check_expected(name, alias, now, expected)
            stack = moves.standing(past)
            if len(stack) < 2 or stack[-2] is None:
                raise ValueError(f"{alias} of {name} stood for nothing before version {now}: promote another version")
            self.checked(self._find(backend, name, str(stack[-2])))
            return moves.move(
                backend, name,
                Promotion(len(past) + 1, alias, "rollback", now, stack[-2], _who(), time.time(), reason, "none"),
            )  # fmt: skip

    def get(self, version: Version, out: Path) -> None:
        """A version's files in the new or empty folder `out`, bit for bit."""
        made = files.make(out, "--out")
        try:
            copy_out(self.store.variant(version.variant_sha256), version.record["files"], out, new=bool(made))
        except BaseException:
            files.remove_empty(made)
            raise

    def folder(self, version: Version) -> Path:
        """Where a version's files are; they belong to the registry and must stay as they are."""
        return self.store.variant(version.variant_sha256)

    def checked(self, version: Version, only: Sequence[str] | None = None) -> Path:
        """The same, after checking that its files, or `only` some of them, are unchanged. Raises DamagedError."""
        wrong = faults(self.folder(version), version.record["files"], only)
        if wrong:
            raise DamagedError(
                f"{version.name} version {version.number} is damaged: {wrong[0]}; add the variant again to repair it"
            )
        return self.folder(version)

    @contextmanager
    def _alone(self, new: bool = False) -> Iterator[Backend]:
        if not new and not (self.root / ".lock").exists():
            raise ValueError(f"there is no registry in {self.root}: `pat registry add` makes one, --dir says where")
        with self.store.locked():
            self._backend = self._backend or self._connect(new)
            yield self._backend

    def _entries(self, backend: Backend, name: str) -> list[Entry]:
        _check_name(name)
        found = [entry for entry in backend.versions(name) if RECORD in entry.tags]
        if not found:
            known = backend.names()
            raise ValueError(
                f"the registry has no {name}; it has {', '.join(known) or 'nothing yet'}{did_you_mean(name, known)}"
            )
        return found

    def _find(self, backend: Backend, name: str, which: str) -> Version:
        entries, aliases = self._entries(backend, name), backend.aliases(name)
        number = int(which) if which.isdecimal() else aliases.get(which)
        for entry in entries:
            if entry.number == number:
                return self._version(name, entry, aliases)
        numbers = ", ".join(str(entry.number) for entry in entries)
        raise ValueError(
            f"{name} has no version {which}; its versions are {numbers}, its aliases "
            f"{', '.join(f'{alias} ({n})' for alias, n in sorted(aliases.items())) or 'none'}"
        )

    def _version(self, name: str, entry: Entry, aliases: Mapping[str, int]) -> Version:
        return Version(
            name=name,
            number=entry.number,
            added_by=entry.tags.get("pat.added_by", "?"),
            added_s=entry.created_s,
            variant_sha256=entry.tags.get(VARIANT, ""),
            record=self.store.recorded(entry.tags[RECORD]),
            aliases=tuple(sorted(alias for alias, number in aliases.items() if number == entry.number)),
        )


def _used(backend: Backend, name: str, content: str) -> bool:
    """Whether a version has these files, or may have them: the backend does not say."""
    try:
        return any(entry.tags.get(VARIANT) == content for entry in backend.versions(name))
    except BackendError:
        return True


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a version on MLflow's page; the record holds everything."""
    origin, figures = record["lineage"], record["figures"]
    code = origin["code"]["trained"] or {}
    shown = {
        "base_model": origin["base_model"]["path"],
        "base_sha256": origin["base_model"]["sha256"],
        "config_sha256": origin["config"]["sha256"],
        "mask_sha256": origin["masks"]["sha256"],
        "weights_sha256": origin["weights"]["trained_sha256"] or origin["weights"]["files_sha256"],
        "sparsity": origin["masks"]["sparsity"],
        "git": code.get("git"),
        "step": origin["run"]["step"],
        "gate": gates.word(record["evidence"].get("gate")),
        **{f"metric.{key}": value for key, value in (figures["metrics"] or {}).items()},
    }
    return {f"pat.{key}": str(value)[:5000] for key, value in shown.items() if value is not None}


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: letters, digits, '.', '-' and '_', at most 100, as reviews-small")


def _check_alias(alias: str, reason: str) -> None:
    if not ALIAS.fullmatch(alias):
        raise ValueError(
            f"--as {alias!r} is no alias: letters, digits, '-' and '_', no number and not latest: champion"
        )
    if len(reason) > REASON:
        raise ValueError(f"--reason has {len(reason):,} characters: give at most {REASON:,}")


def _check_expected(name: str, alias: str, now: int | None, expected: str | None) -> None:
    if expected is not None and expected != str(now or "none"):
        raise RefusedError(
            f"{alias} of {name} stands for version {now or 'none'}, not for {expected} as --expect says: it stays there"
        )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:200]
