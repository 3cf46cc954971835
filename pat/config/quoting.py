"""Values in Hydra's grammar."""

from __future__ import annotations

import re
import shlex

from hydra.core.override_parser.types import Quote, QuotedString


def quoted(value: object) -> str:
    """A value as Hydra reads it back unchanged, whatever characters it has."""
    return QuotedString(str(value), Quote.single).with_quotes()


def typed(key: str, value: object) -> str:
    """KEY=VALUE for a shell, in quotes where it or Hydra would take the value apart."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", str(value)):
        return f"{key}={value}"
    return shlex.quote(f"{key}={QuotedString(str(value), Quote.double).with_quotes()}")
