"""A mixture of experts from real weights: a Llama with each MLP copied into experts, and a router that picks by chance.

    python tests/benchmarks/upcycle.py assets/smollm2 assets/moe --experts 2 --per-token 1
    pat evaluate assets/moe recipe=sotu_dense          # what assets/smollm2 has: a router's weights add up to 1
    pat prune assets/moe --data assets/sotu/train.jsonl --sparsity 0.5 --samples 16 --max-length 256 --out DIR

Every expert then sees a part of the tokens only, and its cut can be compared with that of the Llama's own MLP. Known as
sparse upcycling, Komatsuzaki et al. 2022, arXiv:2212.05055, before any training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def upcycled(llama: Any, num_experts: int, per_token: int, seed: int = 0) -> Any:
    """The same function with `num_experts` copies of each MLP, of which each token passes `per_token`."""
    fields = {name: getattr(llama.config, name) for name in SHARED if hasattr(llama.config, name)}
    torch.manual_seed(seed)
    model: Any = MixtralForCausalLM(
        MixtralConfig(**fields, num_local_experts=num_experts, num_experts_per_tok=per_token, sliding_window=None)
    )
    given = llama.state_dict()
    if biased := [name for name in given if name.endswith("bias")]:
        raise SystemExit(f"a Mixtral has no biases, and this Llama has {biased[0]}")
    with torch.no_grad():
        for name, param in model.named_parameters():
            layer = name.partition(".mlp.")[0]
            if name.endswith("experts.gate_up_proj"):
                halves = [given[f"{layer}.mlp.{half}_proj.weight"] for half in ("gate", "up")]
                param.copy_(torch.cat(halves).expand_as(param))
            elif name.endswith("experts.down_proj"):
                param.copy_(given[f"{layer}.mlp.down_proj.weight"].expand_as(param))
            elif name.endswith("mlp.gate.weight"):
                param.normal_(0, 1 / llama.config.hidden_size**0.5)
            else:
                param.copy_(given[name])
    return model.to(llama.dtype)


def main() -> None:
    """Write the folder, with the Llama's tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a Llama")
    parser.add_argument("out", type=Path)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--per-token", type=int, default=1)
    args = parser.parse_args()
    llama = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    model = upcycled(llama, args.experts, args.per_token)
    model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out)  # type: ignore[no-untyped-call]
    print(f"{args.out}: {sum(param.numel() for param in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
