"""Whether wandb has credentials."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from urllib.parse import urlparse


def has_api_key(environ: Mapping[str, str]) -> bool:
    """Whether wandb would find credentials without asking."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
