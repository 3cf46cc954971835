"""The first samples that training sees, and our calibration, as a peer can read them: {"input_ids": [...]} a line.

python tests/benchmarks/peers/samples.py COUNT FILE recipe=NAME [key=value ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pat.config.compose import compose
from pat.data.prepare import prepare
from pat.data.sampler import first_indices
from pat.models.tokenizers import build_tokenizer
from pat.schema import Config
from pat.tasks import base


def main() -> int:
    """Write the file."""
    count, file, overrides = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

    def write(config: Config) -> int:
        task = base.build(config.task)
        train = prepare(config.data, build_tokenizer(config.model), task, config.seed).train
        chosen = first_indices(count, len(train), config.seed)
        columns = [name for name in ("input_ids", "labels", "label") if name in train.column_names]
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = ({name: train[index][name] for name in columns} for index in chosen)
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return 0

    return compose(overrides, write)


if __name__ == "__main__":
    raise SystemExit(main())
