"""SparseGPT or Wanda by llmcompressor, with its defaults: all linear maps but the output's, layer by layer.

PYTHON with_llmcompressor.py MODEL SAMPLES OUT --method sparsegpt|wanda (--sparsity S | --pattern N:M)
"""

from __future__ import annotations

import argparse

from datasets import Dataset
from folders import load, read_samples, save
from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier  # pyright: ignore[reportMissingImports]

METHODS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def main() -> None:
    """Prune a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "samples", "out"):
        parser.add_argument(name)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--pattern")
    options = parser.parse_args()
    model, dtype = load(options.model)
    samples = read_samples(options.samples)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]
    kept, of = map(int, (options.pattern or "0:0").split(":"))
    sparsity = 1 - kept / of if options.pattern else options.sparsity
    modifier = METHODS[options.method](
        sparsity=sparsity, mask_structure=f"{kept}:{of}", targets=["Linear"], ignore=["re:.*lm_head", "re:.*classifier"]
    )
    oneshot(
        model=model,
        tokenizer=options.model,
        dataset=Dataset.from_list(rows),
        recipe=[modifier],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
        max_seq_length=max(map(len, samples)),
    )
    save(model, options.model, options.out, dtype)


if __name__ == "__main__":
    main()
