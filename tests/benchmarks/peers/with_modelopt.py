"""2:4 by NVIDIA's modelopt, mode sparsegpt, with its defaults.

PYTHON with_modelopt.py MODEL SAMPLES OUT --method sparsegpt --pattern 2:4
"""

from __future__ import annotations

import argparse

import modelopt.torch.sparsity as mts  # pyright: ignore[reportMissingImports]
import torch
from folders import load, read_samples, save


def main() -> None:
    """Prune a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "samples", "out"):
        parser.add_argument(name)
    parser.add_argument("--method", choices=["sparsegpt"], required=True)
    parser.add_argument("--pattern", choices=["2:4"], required=True)
    options = parser.parse_args()
    model, dtype = load(options.model)
    batches = [{"input_ids": torch.tensor([ids])} for ids in read_samples(options.samples)]
    config = {"data_loader": batches, "collect_func": lambda batch: batch}
    model = mts.export(mts.sparsify(model, mode="sparsegpt", config=config))
    save(model, options.model, options.out, dtype)


if __name__ == "__main__":
    main()
