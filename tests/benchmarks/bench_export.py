"""How much faster an exported model is than the dense one, as a fraction of what its FLOPs promise.

    python tests/benchmarks/bench_export.py DENSE PRUNED [--tokens 512] [--batch 1] [--rounds 5] [--json FILE]

DENSE and PRUNED are folders of `pat export` (or any Hugging Face folders of one family). Both models run the forward of
the same random tokens in turn, in fp32 unless --dtype says otherwise; the ratio is that of the medians, in one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from pat.export import loader
from pat.models import families
from pat.pruning.structures import costs


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {
        name: loader.load(folder, dtype=getattr(torch, options.dtype)).eval()
        for name, folder in (("dense", options.dense), ("pruned", options.pruned))
    }
    vocabulary = AutoConfig.from_pretrained(options.dense).vocab_size
    ids = torch.randint(0, vocabulary, (options.batch, options.tokens), generator=torch.Generator().manual_seed(0))
    flops = {}
    for name, model in models.items():
        anatomy = families.family(model.config.model_type).anatomy(model)
        flops[name] = costs.flops(anatomy, options.tokens).total(costs.dense_widths(anatomy)) * options.batch
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for round_ in range(options.rounds + 1):
            for name, model in models.items():
                start = time.perf_counter()
                model(ids)
                if round_:  # the first touches the pages
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    speedup, ideal = medians["dense"] / medians["pruned"], flops["dense"] / flops["pruned"]
    said: dict[str, Any] = {
        "tokens": options.tokens,
        "batch": options.batch,
        "threads": options.threads,
        "dtype": options.dtype,
        "flops": flops,
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "median_seconds": medians,
        "speedup": speedup,
        "ideal": ideal,
        "fraction_of_ideal": speedup / ideal,
    }
    print(
        f"{options.batch} x {options.tokens} tokens, {options.threads} thread(s), {options.dtype}: {speedup:.2f} times "
        f"as fast; FLOPs promise {ideal:.2f}; fraction {speedup / ideal:.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
