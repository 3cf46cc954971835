"""Other projects that prune, each in an environment of its own, at one pinned version.

A peer is a script that runs with that environment's Python: it reads a Hugging Face folder and a JSON-lines file of
tokenised samples ({"input_ids": [...]}), those that our own calibration sees, and writes a Hugging Face folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMON = ("torch==2.13.0", "transformers==5.17.0", "accelerate==1.15.0")
INSTALLED = "installed.txt"  # in an environment: what it was made for


@dataclass(frozen=True)
class Peer:
    """One project."""

    name: str
    requirement: str
    script: str  # beside this file
    missing: tuple[str, ...] = ()  # what it imports and does not require

    @property
    def requirements(self) -> list[str]:
        """All that pip is asked for."""
        return [self.requirement, *self.missing, *COMMON]

    @property
    def folder(self) -> Path:
        """Its environment. PAT_PEERS says where all are kept."""
        return Path(os.environ.get("PAT_PEERS") or Path.home() / ".cache/pat/peers") / self.name

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    def installation(self) -> list[list[str]]:
        """The commands that make the environment; none where it stands."""
        wanted = self.requirements
        note = self.folder / INSTALLED
        if note.is_file() and note.read_text().split() == wanted:
            return []
        return [
            [sys.executable, "-m", "venv", str(self.folder)],
            [str(self.python), "-m", "pip", "install", "--quiet", *wanted],
        ]

    def installed(self) -> None:
        """Note that all commands of `installation` succeeded."""
        (self.folder / INSTALLED).write_text("\n".join(self.requirements) + "\n")

    def versions(self) -> dict[str, str]:
        """What is in the environment."""
        listed = [str(self.python), "-m", "pip", "list", "--format=freeze"]
        lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
        kept = {name.partition("==")[0] for name in self.requirements}
        return {name: version for name, _, version in (line.partition("==") for line in lines) if name in kept}


@dataclass(frozen=True)
class Own(Peer):
    """No project: a script that runs in pat's own environment."""

    requirement: str = ""
    script: str = ""

    @property
    def python(self) -> Path:
        """This interpreter."""
        return Path(sys.executable)

    def installation(self) -> list[list[str]]:
        """Nothing."""
        return []

    def installed(self) -> None:
        """There is nothing to note."""

    def versions(self) -> dict[str, str]:
        """Those of every row."""
        return {}


PEERS = {
    peer.name: peer
    for peer in (
        Peer("llmcompressor", "llmcompressor==0.14.0.1", "with_llmcompressor.py"),
        Peer("modelopt", "nvidia-modelopt==0.47.0", "with_modelopt.py", missing=("requests==2.34.2",)),
        Peer("torch-pruning", "torch-pruning==1.6.1", "with_torch_pruning.py"),
        Peer("torchao", "torchao==0.18.0", "with_torchao.py"),
        Own("smaller", script="smaller.py"),
    )
}
