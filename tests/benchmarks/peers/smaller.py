"""A smaller model of the same family, cut without looking at anything: what pruning has to beat.

PYTHON smaller.py MODEL SAMPLES OUT --method plain --keep ffn=SHARE|layers=NUMBER

Neurons have no order: the first ones of each layer stay. Layers stay evenly spaced, the first and the last among them,
nearly as DistilBERT begins (Sanh et al. 2019, arXiv:1910.01108). The samples are not read.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from folders import load, save
from torch import nn

INTO = ("mlp.gate_proj", "mlp.up_proj", "intermediate.dense")  # whose outputs are the neurons: of a Llama, of a BERT
OUT_OF = ("mlp.down_proj", "output.dense")
ATTENTION = "attention"


def first_neurons(model: Any, share: float) -> None:
    """Keep the first of each layer, in place."""
    width = round(share * model.config.intermediate_size)
    for name, module in model.named_modules():
        if name.endswith(INTO):
            module.weight = nn.Parameter(module.weight[:width].clone())
            module.bias = None if module.bias is None else nn.Parameter(module.bias[:width].clone())
            module.out_features = width
        elif name.endswith(OUT_OF) and ATTENTION not in name:
            module.weight = nn.Parameter(module.weight[:, :width].clone())
            module.in_features = width
    model.config.intermediate_size = width


def spaced_layers(model: Any, number: int) -> None:
    """Keep so many, evenly spaced, in place."""
    base = model.base_model
    holder, name = (base.encoder, "layer") if hasattr(base, "encoder") else (base, "layers")
    layers = getattr(holder, name)
    kept = [round(place) for place in torch.linspace(0, len(layers) - 1, number).tolist()]
    setattr(holder, name, nn.ModuleList(layers[place] for place in kept))
    model.config.num_hidden_layers = number
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[place] for place in kept]


def main() -> None:
    """Cut a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "samples", "out"):
        parser.add_argument(name)
    parser.add_argument("--method", choices=("plain",), required=True)
    parser.add_argument("--keep", required=True)
    options = parser.parse_args()
    structure, _, amount = options.keep.partition("=")
    model, dtype = load(options.model)
    if structure == "ffn":
        first_neurons(model, float(amount))
    elif structure == "layers":
        spaced_layers(model, int(amount))
    else:
        raise SystemExit(f"--keep {options.keep}: only ffn=SHARE or layers=NUMBER")
    save(model, options.model, options.out, dtype)


if __name__ == "__main__":
    main()
