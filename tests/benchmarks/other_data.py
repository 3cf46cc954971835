"""Five more sets of sentences for the frontier; `customers`, `opinions` and `banking` had no part in any setting.

    git clone https://github.com/harvardnlp/sent-conv-torch && python tests/benchmarks/other_data.py sent-conv-torch
    python tests/benchmarks/frontier.py --data questions,subjectivity,customers,opinions --steps 120 \\
        --targets 80,ffn=0.5 --methods dense,alps,obs,llmcompressor-sparsegpt
    git clone https://github.com/PolyAI-LDN/task-specific-datasets
    python tests/benchmarks/other_data.py task-specific-datasets    # banking, whose 77 labels need more steps

Four are those of Kim 2014 (arXiv:1408.5882), banking's is that of Casanueva et al. 2020 (arXiv:2003.04807). Each text
counts once, with its first label. The questions (TREC) and banking come with a test file; of the others those texts are
held out whose sha256, as a number, divides by ten, of the customers' reviews, which are few, by five. Written to
PAT_ASSETS, or assets/.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.commands import ROOT


@dataclass(frozen=True)
class Sentences:
    """One data set: its file in the repository, and which texts are held out."""

    file: str  # of lines `LABEL TEXT`, or CSV
    sha256: str
    every: int = 10  # one in so many
    test: str | None = None  # the file of those held out, if it has one
    test_sha256: str = ""


SETS = {
    "questions": Sentences(
        "data/TREC.train.all",
        "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
        test="data/TREC.test.all",
        test_sha256="92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
    ),
    "subjectivity": Sentences("data/subj.all", "f3ffbe2aa8e4f3ba3e63e46dce51613854edbca122fb3aa758b9bce047ded23c"),
    "customers": Sentences(
        "data/custrev.all", "a3839a79bd3285177a07158c6104b49038a7a06ab2abe897734cde5d22e5e325", every=5
    ),
    "opinions": Sentences("data/mpqa.all", "661de8a069da4b9845fc8b9ae59cc97ffe554f3018fa6bf0e640e3d626a4eaf7"),
    "banking": Sentences(
        "banking_data/train.csv",
        "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
        test="banking_data/test.csv",
        test_sha256="d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
    ),
}


def assets() -> Path:
    """The folder that holds what rows are measured with."""
    return Path(os.environ.get("PAT_ASSETS") or ROOT / "assets")


def checked(path: Path, sha256: str) -> bytes:
    """A file's content, if it has that hash."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SystemExit(f"{path} is another file than the one that was measured with: its sha256 is not {sha256}")
    return data


def labelled(path: Path, sha256: str) -> dict[str, int | str]:
    """Text to label, from lines `LABEL TEXT` in Latin-1, or from CSV in UTF-8 with the columns text and category."""
    content, found = checked(path, sha256), dict[str, int | str]()
    if path.suffix == ".csv":
        for row in csv.DictReader(io.StringIO(content.decode())):
            found.setdefault(row["text"].strip(), row["category"])
        return found
    for line in content.decode("latin-1").split("\n"):
        label, _, text = line.strip().partition(" ")
        if text:
            found.setdefault(text, int(label))
    return found


def held_out(text: str, every: int) -> bool:
    """Whether a text is among the one in `every`."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % every == 0


def split(source: Path, known: Sentences) -> tuple[dict[str, int | str], dict[str, int | str]]:
    """(training, held out)."""
    found = labelled(source / known.file, known.sha256)
    if known.test:
        test = labelled(source / known.test, known.test_sha256)
        return {text: label for text, label in found.items() if text not in test}, test
    test = {text: label for text, label in found.items() if held_out(text, known.every)}
    return {text: label for text, label in found.items() if text not in test}, test


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One row a line, in JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write those that the repository has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a clone of one of these repositories")
    options = parser.parse_args()
    there = {name: known for name, known in SETS.items() if (options.source / known.file).exists()}
    if not there:
        parser.error(f"{options.source} has none of {', '.join(known.file for known in SETS.values())}")
    for name, known in there.items():
        for part, rows in zip(("train", "eval"), split(options.source, known), strict=True):
            path = assets() / name / f"{part}.jsonl"
            write(path, ({"text": text, "label": label} for text, label in rows.items()))
            print(f"{path}: {len(rows):,} texts, {len(set(rows.values()))} labels")


if __name__ == "__main__":
    main()
