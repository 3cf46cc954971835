"""From Hydra's multirun syntax to the members of a sweep: each is one `pat train`."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from pat.config.compose import compose, run_name
from pat.config.quoting import quoted
from pat.schema import Config

if TYPE_CHECKING:
    from pat.training.checked import Checked

_OURS = ("run.dir", "run.name")  # of a sweep's members
AS_GIVEN = "as-given"  # a member that adds no keys
_LONGEST = 120  # bytes of a member's name, which is a directory


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str  # also its directory
    dir: Path
    varied: dict[str, str]  # the keys that differ between members
    command: tuple[str, ...]  # of `pat`: train ...
    config: Config


def checked(member: Member, here: bool = True) -> Checked:
    """All that its start checks and builds before its ranks meet. ValueError. here=False: on other machines; those of a
    hostfile always are."""
    from pat.training.preflight import prepare  # heavy

    return prepare(member.config, member.dir, here and member.config.engine.hostfile is None)


def check_one(members: Sequence[Member], here: bool = True) -> None:
    """The first member's ValueError where none would be accepted: a mistake that all share is reported once, before any
    directory is made. A mistake of one member costs only that one."""
    refused: list[ValueError] = []
    for member in members:
        try:
            checked(member, here)
            return
        except ValueError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def problems(members: Sequence[Member], here: bool = True) -> dict[str, str]:
    """The error with which each member's start would fail, by its name; {} where all would start. here=False: on other
    machines."""
    said: dict[str, str] = {}
    for member in members:
        try:
            checked(member, here)
        except ValueError as error:
            said[member.name] = str(error)
    return said


def sweep_name(overrides: Sequence[str]) -> str:
    """The recipe and the overrides: the same command finds its sweep again."""
    recipe = next((o.partition("=")[2] for o in overrides if o.startswith("recipe=")), None)
    return run_name(overrides, recipe and recipe.replace(",", "_"), sweep=True)


def members_of(
    overrides: Sequence[str],
    out: Path,
    config_dir: str | None = None,
    candidates: Sequence[str] = (),  # keys beside the overrides, a member or more each
) -> list[Member]:
    """Compose every combination that the overrides ask for, under each candidate's keys. ValueError where one of them
    is no valid run."""
    sets = [[*overrides, *_keys_of(candidate)] for candidate in candidates] or [list(overrides)]
    for override in {override for given in sets for override in given}:
        if override.lstrip("+").partition("=")[0] in _OURS:
            raise ValueError(f"{override}: the runs of a sweep live in directories of their own below --out")
    options = ["--config-dir", config_dir] if config_dir else []
    composed: list[tuple[list[str], Config]] = []

    def take(config: Config) -> int:
        composed.append((list(HydraConfig.get().overrides.task), config))
        return 0

    for each in sets:
        with tempfile.TemporaryDirectory() as scratch:  # Hydra's own record, which sweep.json replaces
            compose([*each, f"hydra.sweep.dir={quoted(scratch)}", "--multirun", *options], take)
    if len(composed) < 2:
        raise ValueError("nothing is swept: give a key several values, such as seed=0,1,2, or take `pat train`")
    if any(config.run.resume != "auto" for _, config in composed):
        raise ValueError("run.resume is the sweep's own, whose --continue goes on with each run: leave it out")
    if any(config.run.until != "end" for _, config in composed):
        raise ValueError(
            "run.until is the sweep's own, whose --race STEP stops runs and finishes the best: leave it out"
        )
    varied = _varied([given for given, _ in composed])
    names = [_name(differing) for differing in varied]
    members = []
    for (given, config), differing, name in zip(composed, varied, names, strict=True):
        if names.count(name) > 1:  # values that differ only in characters that directory names should not have
            name += "-" + hashlib.sha256(repr(differing).encode()).hexdigest()[:8]
        if any(name == member.name for member in members):
            raise ValueError(
                f"two runs of the sweep would share a folder ({' '.join(given)}): give each value of a key, and each "
                "--candidate, once"
            )
        run_dir = out / name
        ours = [f"run.dir={quoted(run_dir)}", f"run.name={quoted(name)}"]
        if not config.logger.group:
            ours.append(f"logger.group={quoted(out.name)}")
        members.append(Member(name, run_dir, differing, ("train", *given, *ours, *options), config))
    return members


def _keys_of(candidate: str) -> list[str]:
    """The keys of a --candidate, parted as the shell does it. ValueError where a quote has no end."""
    try:
        return shlex.split(candidate)
    except ValueError:
        raise ValueError(
            f"--candidate {candidate}: a quote or a backslash has no end: close it, or write \\' or \\\" for a quote "
            "in a value"
        ) from None


def python_command(member: Member) -> list[str]:
    """The command that starts a member on this machine."""
    return [sys.executable, "-m", "pat.cli", *member.command]


def _varied(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """The keys of each member, as the user knows them, whose values differ between members; "" where one is missing."""
    tables = [{_key(o): o.partition("=")[2] for o in given} for given in overrides]
    named = dict.fromkeys(key for table in tables for key in table)
    keys = [key for key in named if len({table.get(key) for table in tables}) > 1]
    return [{key: table.get(key, "") for key in keys} for table in tables]


def _key(override: str) -> str:
    """`criterion@pruners.weights.criterion=...` is how a method is chosen: `weights.criterion`."""
    return override.lstrip("+").partition("=")[0].rpartition("@")[2].removeprefix("pruners.")


def _name(varied: dict[str, str]) -> str:
    given = [f"{key}={value}" for key, value in varied.items() if value] or [AS_GIVEN]
    name = ",".join(re.sub(r"[^\w.=+~-]+", "_", each) for each in given)
    if len(name.encode()) > _LONGEST:
        begin = name.encode()[: _LONGEST - 20].decode(errors="ignore")
        name = f"{begin}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name
