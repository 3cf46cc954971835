"""Feed-forward neurons by Torch-Pruning, by magnitude or Taylor, the same number in each layer.

PYTHON with_torch_pruning.py MODEL SAMPLES OUT --method magnitude|taylor --keep ffn=SHARE
"""

from __future__ import annotations

import argparse

import torch
import torch_pruning as tp  # pyright: ignore[reportMissingImports]
from folders import load, read_rows, save

METHODS = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}
INTO = ("mlp.gate_proj", "mlp.up_proj", "intermediate.dense")  # whose outputs are the neurons: of a Llama, of a BERT


def main() -> None:
    """Prune a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "samples", "out"):
        parser.add_argument(name)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--keep", required=True)
    options = parser.parse_args()
    structure, share = options.keep.split("=")
    if structure != "ffn":
        raise SystemExit(f"--keep {options.keep}: only ffn=SHARE")
    model, dtype = load(options.model)
    model.config.use_cache = False
    samples = read_rows(options.samples)
    if options.method == "taylor":  # its gradients add up
        for sample in samples:
            tokens = torch.tensor([sample["input_ids"]])
            labels = torch.tensor([sample["label"]]) if "label" in sample else tokens
            model(input_ids=tokens, labels=labels).loss.backward()
    into = [module for name, module in model.named_modules() if name.endswith(INTO)]
    others = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module not in into]
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": torch.tensor([samples[0]["input_ids"]])},
        importance=METHODS[options.method](),
        pruning_ratio=1 - float(share),
        ignored_layers=[module for module in others if module not in into],
        root_module_types=[torch.nn.Linear],
    )
    pruner.step()
    widths = {module.out_features for module in into}
    assert len(widths) == 1, f"layers of different widths: {sorted(widths)}"
    model.config.intermediate_size = widths.pop()
    model.zero_grad(set_to_none=True)
    model.config.use_cache = True
    save(model, options.model, options.out, dtype)


if __name__ == "__main__":
    main()
