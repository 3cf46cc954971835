"""How much the logits of an export differ from the trained model's, where rounding is all that differs.

    python tests/benchmarks/bench_rounding.py assets/smollm2 assets/minilm [--gates ffn] [--seeds 2] [--kinds merged]

For each folder a run is made up that has lost every second unit and whose other gates, between 0.5 and 1, are folded at
export, and one with LoRA adapters of rank 8 that are merged. Both are exported in each dtype. Printed is the largest
difference of the logits as a share of the largest logit, and of a layer as a share of what the layer changes:
pat/export/verify.py and streamed.py allow a multiple of these.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pat.common.files import write_json
from pat.export import streamed, verify
from pat.export.export import export_run
from pat.models import adapters
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import PeftConfig, PrunerConfig
from tests.fake_run import write_run

KINDS = ("folded", "merged")
DTYPES = ("fp32", "bf16", "fp16")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--gates", default="ffn")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/rounding.json"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for folder in options.folders:
        for kind in options.kinds.split(","):
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as scratch:
                    run = Path(scratch) / "run"
                    make(folder, run, kind, options.gates.split(","), seed)
                    for dtype in DTYPES:
                        logits, layer = shares(run, Path(scratch) / dtype, dtype)
                        rows.append(
                            {
                                "model": folder.name,
                                "kind": kind,
                                "seed": seed,
                                "dtype": dtype,
                                "logits": logits,
                                "layer": layer,
                            }
                        )
                        print(
                            f"{folder.name} {kind} {seed} {dtype}: logits {logits:.1e}, layer {layer:.1e}", flush=True
                        )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_json(options.out, {"command": " ".join(sys.argv), "versions": versions, "rows": rows})


def make(folder: Path, run: Path, kind: str, structures: list[str], seed: int) -> None:
    """A run directory of the model in `folder`, with gates or adapters of a size that training gives them."""
    auto, task = AutoModelForSequenceClassification, "classification"
    if AutoConfig.from_pretrained(folder).model_type == "llama":
        auto, task = AutoModelForCausalLM, "causal_lm"
    torch.manual_seed(seed)
    model: Any = auto.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "merged":
        adapters.inject(model, PeftConfig(r=8, alpha=16.0), seed)
        with torch.no_grad():
            for name, param in model.named_parameters():
                if "lora_B" in name:
                    param.normal_(0.0, 0.01)
        write_run(
            run, model, tokenizer, task, (10,), {"pruners": {}, "peft": {"r": 8, "alpha": 16.0}}, dtype="fp32", prune=""
        )
        return
    settings: dict[str, Any] = {
        "structures": structures,
        "gate": "l0",
        "budget": {"name": "parameters", "sparsity": 0.1},
        "schedule": {"name": "linear", "start": 2, "end": 8},
    }
    pruner = StructurePruner("narrow", PrunerConfig(**settings), model, num_steps=20, seed=seed)
    pruner.forward.remove()
    pruner.state.begun, pruner.state.hardened = 9, True  # not folded yet
    pruner.state.keep = torch.arange(pruner.state.keep.numel()) % 2 == 0
    pruner.state.z = torch.where(pruner.state.keep, torch.rand(pruner.state.z.shape) / 2 + 0.5, 0.0)
    state = {"narrow": (pruner.tensors(), pruner.shared())}
    write_run(
        run, model, tokenizer, task, (10,), {"pruners": {"narrow": settings}}, gates=state, dtype="fp32", prune=""
    )


def shares(run: Path, out: Path, dtype: str) -> tuple[float, float]:
    """The largest difference of the logits over the largest logit, and of a layer over its change."""
    seen: list[float] = []

    def noted(found: torch.Tensor, expected: torch.Tensor, *_: Any) -> float:
        seen.append(float((found - expected).abs().max() / expected.abs().max()))
        return seen[-1]

    unlimited = dict.fromkeys(verify.ROUNDED_TOLERANCE, float("inf"))
    with (
        mock.patch.object(verify, "tolerated", noted),
        mock.patch.object(streamed, "tolerated", noted),
        mock.patch.object(streamed, "ROUNDED_LAYER_TOLERANCE", unlimited),
    ):
        export_run(run, out / "logits", dtype=dtype, verify="logits")
        layer = export_run(run, out / "layers", dtype=dtype, verify="layers")["max_layer_diff"]
    return seen[0], layer


if __name__ == "__main__":
    main()
