"""Training with torchao's PAT: the smallest weights of each matrix, along its cubic schedule to 60 % of the steps.

    PYTHON with_torchao.py MODEL SAMPLES OUT --method pat --sparsity S --steps N

The samples are those of N steps. What trains, batch, optimizer, rate, warm-up and clipping are those of `pat train
recipe=decoder`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from folders import load, save
from torchao.prototype.pat.optim import build_prune_optimizer  # pyright: ignore[reportMissingImports]

BATCH, RATE, WARMUP, CLIP = 4, 2.0e-4, 0.05, 1.0
START, END = 0.1, 0.6  # of the schedule, as our gradual rows have it


def main() -> None:
    """Train a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "samples", "out"):
        parser.add_argument(name)
    parser.add_argument("--method", choices=["pat"], required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    model, dtype = load(options.model)
    model.train()
    samples = [json.loads(line) for line in Path(options.samples).read_text().splitlines()]
    inside = [p for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2]
    chosen = {id(p) for p in inside}
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        embedding.requires_grad_(False)  # as the recipe has it for running text
    pruned = {
        "params": inside,
        "group_type": "KElementGrouper",
        "k": 1,
        "prox_type": "MinSparsityConstraint",
        "min_sparsity": options.sparsity,
        "min_sparsity_schedule": True,
    }
    others = {"params": [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]}
    base = torch.optim.AdamW([pruned, others], lr=RATE, weight_decay=0.0, fused=True)
    start, healing = round(START * options.steps), round(END * options.steps)
    optimizer = build_prune_optimizer(base, 0.0, prune_warmup_steps=start, prune_healing_start_step=healing)
    for step in range(options.steps):
        rate = RATE * factor(step, options.steps)
        for group in base.param_groups:
            group["lr"] = rate
        batch = samples[step * BATCH : (step + 1) * BATCH]
        loss = mean_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        base.zero_grad(set_to_none=True)
        print(f"step {step + 1}/{options.steps} loss {loss.item():.4f}", flush=True)
    save(model.eval(), options.model, options.out, dtype)


def mean_loss(model: torch.nn.Module, batch: list[dict[str, list[int]]]) -> torch.Tensor:
    """Of next tokens; those with a label where samples say which."""
    width = max(len(sample["input_ids"]) for sample in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    labels, real = torch.full((len(batch), width), -100), torch.zeros(len(batch), width, dtype=torch.long)
    for row, sample in enumerate(batch):
        length = len(sample["input_ids"])
        tokens[row, :length] = torch.tensor(sample["input_ids"])
        labels[row, :length] = torch.tensor(sample.get("labels", sample["input_ids"]))
        real[row, :length] = 1
    return model(input_ids=tokens, attention_mask=real, labels=labels).loss


def factor(step: int, steps: int) -> float:
    """Of the rate: up over the warm-up, then linearly down to 0."""
    warmup = round(WARMUP * steps)
    return (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)


if __name__ == "__main__":
    main()
