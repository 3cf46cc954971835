"""Whether a gate's result lets a version be promoted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pat.registry import variant
from pat.run.directory import ExitCode

LIMIT = 16 << 20  # bytes of a result


class RefusedError(ValueError):
    """The version must not be promoted."""

    exit_code = ExitCode.BROKEN_PROMISE


def read(file: Path, option: str, command: str) -> dict[str, Any]:
    """The JSON that a command wrote. ValueError for anything else."""
    give = f"give what `{command} --json` wrote"
    try:
        if file.stat().st_size > LIMIT:
            raise ValueError(f"{option} {file} has more than {LIMIT >> 20} MiB: {give}")
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{option} {file}: there is no such file; {give}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError, RecursionError):
        raise ValueError(f"{option} {file} is not readable as JSON: {give}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{option} {file} holds no JSON mapping: {give}")
    return content


def word(gate: Mapping[str, Any] | None) -> str | None:
    """Passed or failed; None where no gate was asked."""
    return None if gate is None else "passed" if gate.get("passed") is True else "failed"


def sha256(gate: Mapping[str, Any]) -> str:
    """Of a result's content, however it was written."""
    return hashlib.sha256(json.dumps(gate, sort_keys=True).encode()).hexdigest()


def check(gate: Mapping[str, Any], record: Mapping[str, Any], which: str) -> None:
    """RefusedError where the gate did not pass, or was another variant's. ValueError for anything else than a gate's
    result."""
    check_weights(gate, record, which)
    if not gate["passed"]:
        checks = gate.get("checks")
        checks = [each for each in checks if isinstance(each, dict)] if isinstance(checks, list) else []
        failed = ", ".join(str(each.get("name", "?")) for each in checks if each.get("passed") is False)
        raise RefusedError(
            f"{which} did not pass its gate{f': {failed}' if failed else ''}; promote a version that did, or judge the "
            "files by another gate and add them as a new version with it (pat registry add NAME FOLDER --gate FILE)"
        )


def check_measured(command: str, content: Mapping[str, Any], record: Mapping[str, Any], which: str) -> None:
    """RefusedError where all models that a command measured are of other weights than these; one that names none is
    taken."""
    models = content.get("models")
    said = [one.get("weights_sha256") for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    if said and all(said) and not set(said) & variant.own_hashes(record):
        raise RefusedError(
            f"what `pat {command}` measured is of other weights than {which}: run `pat {command}` on this variant"
        )


def check_weights(gate: Mapping[str, Any], record: Mapping[str, Any], which: str) -> None:
    """RefusedError where the gate names other weights than these. ValueError for anything else than a gate's result."""
    if not isinstance(gate.get("passed"), bool):
        raise ValueError(f"the gate's result does not say whether {which} passed: give what `pat gate --json` wrote")
    asked = gate.get("variant")
    named = asked.get("weights_sha256") if isinstance(asked, dict) else None
    if named is not None and named not in variant.own_hashes(record):
        raise RefusedError(
            f"the gate's result is of other weights ({str(named)[:12]}) than {which}: run `pat gate` on this variant"
        )
