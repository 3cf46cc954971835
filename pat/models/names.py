"""Names of models: folders here, or the hub's, whose client may try the network for long."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from functools import cache

from huggingface_hub.constants import is_offline_mode

from pat.common.text import did_you_mean

NEAR = 0.8  # of two paths' likeness: one is the other, misspelt


def require_reachable(name: str, key: str) -> None:
    """A name that can only be a folder must be one: the hub's client would try the network for a minute first. One of
    the hub's that is nearly a folder's is said to be looked for. Raises ValueError."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    folder, _, last = name.rpartition("/")
    if not os.path.isdir(name) and (looks_local or (folder and os.path.isdir(folder))):
        beside = folders(folder or "/") if os.path.isdir(folder) else []
        made = "; `python launch/assets.py` makes those of the recipes" if os.path.basename(folder) == "assets" else ""
        raise ValueError(
            f"There is no folder {key}='{name}' (seen from {os.getcwd()}{made}){did_you_mean(last, beside) or '.'}"
        )
    if near := _near(name):
        _say_near(name, near)


def to_fetch(name: str) -> str:
    """What to do about a name that is neither found on the hub nor in its cache: a folder nearly of that name, or a
    download where the hub's client may not use the network. Nothing of a folder that is there."""
    if os.path.isdir(name):
        return ""
    meant = f" Did you mean the folder {near}?" if (near := _near(name)) else ""
    offline = f" HF_HUB_OFFLINE is set: run `hf download {name}` where there is a network." if is_offline_mode() else ""
    return meant + offline


def folders(folder: str) -> list[str]:
    """Those in it; none where it may not be read."""
    try:
        return [entry.name for entry in os.scandir(folder) if os.path.isdir(entry.path)]
    except OSError:
        return []


def _near(name: str) -> str | None:
    """A folder DIR/NAME here that is spelt nearly like this one, which is none."""
    parent, _, _ = name.partition("/")
    if name.count("/") != 1 or os.path.isdir(name):
        return None
    beside = [f"{near}/{folder}" for near in get_close_matches(parent, folders(".")) for folder in folders(near)]
    return next(iter(get_close_matches(name, beside, 1, NEAR)), None)


@cache
def _say_near(name: str, near: str) -> None:
    """Once, before the hub is asked, which may take half a minute."""
    print(f"pat: there is no folder {name}, but {near}; looking for {name} on the hub ...", file=sys.stderr, flush=True)
