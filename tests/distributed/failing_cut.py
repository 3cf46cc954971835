"""`pat`, whose cut meets inputs that are all 0 in its second layer, when the first has been cut in memory."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch

from pat import cli
from pat.pruning.criteria.wanda import Wanda

FIRST_LAYER = 4  # inputs of its matrices: of q, k and v, of o, of gate and up, of down


def main() -> None:
    """The command line, with the fault."""
    plain, number = Wanda.prepare, itertools.count()

    def prepare(criterion: Wanda, inputs: Any) -> Any:
        if next(number) == FIRST_LAYER:
            inputs = {kind: torch.zeros_like(value) for kind, value in inputs.items()}
        return plain(criterion, inputs)

    Wanda.prepare = prepare  # type: ignore[method-assign]
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
