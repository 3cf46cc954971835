"""Values in Hydra's grammar."""

from __future__ import annotations

from hydra.core.override_parser.types import Quote, QuotedString


def quoted(value: object) -> str:
    """A value as Hydra reads it back unchanged, whatever characters it has."""
    return QuotedString(str(value), Quote.single).with_quotes()
