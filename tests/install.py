"""What tests install where they may: packages of Debian or Ubuntu, by tests/install.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("install.sh")
LAST = 300  # characters of what apt-get says


def may_install() -> bool:
    """As root on Debian or Ubuntu."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def problem_of(*packages: str) -> str:
    """Install those that are missing; "" or why they are not there."""
    if not may_install():
        return "to install it needs root on Debian or Ubuntu"
    done = subprocess.run([SCRIPT, *packages], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return f"it cannot be installed: {done.stderr[-LAST:]}" if done.returncode else ""
