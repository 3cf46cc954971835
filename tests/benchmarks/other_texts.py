"""Two more texts for the frontier's decoder: plays, and the source of Python's standard library.

    git clone https://github.com/karpathy/char-rnn && python tests/benchmarks/other_texts.py char-rnn
    python tests/benchmarks/frontier.py --data plays,library --steps 80 --targets 50 \\
        --methods dense,alps,llmcompressor-sparsegpt

The plays are Shakespeare's, as that repository has them in data/tinyshakespeare; the last tenth is held out. The
library is that of the Python that runs this, without its tests and IDLE: a file is held out if the sha256 of its name
divides by ten, but for pieces that are also trained on. Both in pieces of 4,000 characters and the rest of the
paragraph or line. Written to PAT_ASSETS, or assets/.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.other_data import assets, checked, held_out, write

PLAYS = "data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
LIBRARY_SHA256 = "aa6386322cca90c7944f5d55372e78de268e7055c08456d64fcd52fcb668682d"  # of all pieces
PIECE = 4000  # characters, at least
WITHOUT = {"test", "tests", "idlelib", "idle_test", "site-packages", "__pycache__"}  # folders of the library


def pieces(text: str, end: str) -> list[str]:
    """Of at least PIECE characters, each up to an `end`; the last may be shorter."""
    found, held = [], ""
    for part in text.split(end):
        held += part + end
        if len(held) >= PIECE:
            found.append(held.strip("\n"))
            held = ""
    return [*found, held.strip("\n")] if held.strip() else found


def plays(source: Path) -> tuple[list[str], list[str]]:
    """(training, held out)."""
    found = pieces(checked(source / PLAYS, SHA256).decode(), "\n\n")
    first = len(found) - len(found) // 10
    return found[:first], found[first:]


def library(folder: Path) -> tuple[list[str], list[str]]:
    """(training, held out)."""
    parts: tuple[list[str], list[str]] = ([], [])
    for path in _sources(folder):
        parts[held_out(path.relative_to(folder).as_posix(), 10)].extend(pieces(path.read_text("utf-8", "ignore"), "\n"))
    training = set(parts[0])
    return parts[0], [piece for piece in parts[1] if piece not in training]


def digest(parts: tuple[list[str], list[str]]) -> str:
    """sha256 of all pieces."""
    return hashlib.sha256("".join(f"{piece}\0" for part in parts for piece in part).encode()).hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.py")):
        if not WITHOUT & set(path.relative_to(folder).parts):
            yield path


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a clone of that repository")
    options = parser.parse_args()
    found = {"plays": plays(options.source), "library": library(Path(sysconfig.get_path("stdlib")))}
    for name, parts in found.items():
        for part, texts in zip(("train", "eval"), parts, strict=True):
            path = assets() / name / f"{part}.jsonl"
            write(path, ({"text": text} for text in texts))
            print(f"{path}: {len(texts):,} pieces, {sum(map(len, texts)):,} characters")
    if digest(found["library"]) != LIBRARY_SHA256:
        print(
            f"The library of this Python {platform.python_version()} is not the one that was measured with, a build of "
            "3.11.7: figures will differ a little."
        )


if __name__ == "__main__":
    main()
