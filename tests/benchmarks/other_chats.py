"""Chats whose answers are long, for the frontier's decoder: sums in words, worked out (GSM8K).

    git clone https://github.com/openai/grade-school-math && python tests/benchmarks/other_chats.py grade-school-math
    python tests/benchmarks/frontier.py --data sums --steps 80 --targets 50,ffn=0.5 \\
        --methods dense,alps,obs,llmcompressor-sparsegpt

Cobbe et al. 2021 (arXiv:2110.14168), as that repository has it in grade_school_math/data; its test file is held out.
Marks for a calculator, <<48/2=24>>, are left out. Written to PAT_ASSETS, or assets/.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.other_data import assets, checked, write

FOLDER = "grade_school_math/data"
FILES = {  # of ours: theirs, its sha256
    "train": ("train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
    "eval": ("test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
}


def chats(content: bytes) -> Iterator[dict[str, Any]]:
    """A question and its answer a line."""
    for row in map(json.loads, content.decode().splitlines()):
        turns = ("user", row["question"]), ("assistant", re.sub(r"<<.*?>>", "", row["answer"]))
        yield {"messages": [{"role": role, "content": text} for role, text in turns]}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a clone of that repository")
    options = parser.parse_args()
    for part, (name, sha256) in FILES.items():
        rows = list(chats(checked(options.source / FOLDER / name, sha256)))
        path = assets() / "sums" / f"{part}.jsonl"
        write(path, rows)
        print(f"{path}: {len(rows):,} chats")


if __name__ == "__main__":
    main()
