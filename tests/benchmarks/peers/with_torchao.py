"""Training with torchao's PAT: the smallest weights of each matrix, along its cubic schedule to 60 % of the steps.

    PYTHON with_torchao.py MODEL SAMPLES OUT --method pat --sparsity S --steps N

The samples are those of N steps. What trains, batch, optimizer, rates, warm-up and clipping are those of `pat train
recipe=decoder` on running text, or of a classifier `recipe=encoder`, whose rate here rises once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from folders import load, read_rows, save
from torchao.prototype.pat.optim import build_prune_optimizer  # pyright: ignore[reportMissingImports]

CLIP = 1.0
HEADS = ("classifier.",)  # of BERT's classes
START, END = 0.1, 0.6  # of the schedule, as our gradual rows have it


@dataclass(frozen=True)
class Training:
    """The recipe's settings."""

    batch: int  # samples of a step
    rate: float
    head_rate: float
    warmup: float  # share of the steps
    embeddings: bool  # whether they train


OF_TEXT = Training(4, 2.0e-4, 2.0e-4, 0.05, embeddings=False)
OF_CLASSES = Training(16, 3.0e-4, 1.0e-3, 0.1, embeddings=True)


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
    samples = read_rows(options.samples)
    training = OF_CLASSES if "label" in samples[0] else OF_TEXT
    inside = [p for name, p in model.named_parameters() if (".layers." in name or ".layer." in name) and p.dim() == 2]
    head = [p for name, p in model.named_parameters() if name.startswith(HEADS)]
    chosen = {id(p) for p in (*inside, *head)}
    if not training.embeddings:
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.requires_grad_(False)
    pruned = {
        "params": inside,
        "group_type": "KElementGrouper",
        "k": 1,
        "prox_type": "MinSparsityConstraint",
        "min_sparsity": options.sparsity,
        "min_sparsity_schedule": True,
    }
    others = {"params": [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]}
    groups = [pruned, others] + ([{"params": head, "lr": training.head_rate}] if head else [])
    base = torch.optim.AdamW(groups, lr=training.rate, weight_decay=0.0, fused=True)
    highest = [group["lr"] for group in base.param_groups]
    start, healing = round(START * options.steps), round(END * options.steps)
    optimizer = build_prune_optimizer(base, 0.0, prune_warmup_steps=start, prune_healing_start_step=healing)
    for step in range(options.steps):
        share = factor(step, options.steps, training.warmup)
        for group, rate in zip(base.param_groups, highest, strict=True):
            group["lr"] = rate * share
        batch = samples[step * training.batch : (step + 1) * training.batch]
        loss = mean_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        base.zero_grad(set_to_none=True)
        print(f"step {step + 1}/{options.steps} loss {loss.item():.4f}", flush=True)
    save(model.eval(), options.model, options.out, dtype)


def mean_loss(model: torch.nn.Module, batch: list[dict[str, Any]]) -> torch.Tensor:
    """Of next tokens, those with a label where samples say which; or of the classes."""
    width = max(len(sample["input_ids"]) for sample in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    labels, real = torch.full((len(batch), width), -100), torch.zeros(len(batch), width, dtype=torch.long)
    for row, sample in enumerate(batch):
        length = len(sample["input_ids"])
        tokens[row, :length] = torch.tensor(sample["input_ids"])
        labels[row, :length] = torch.tensor(sample.get("labels", sample["input_ids"]))
        real[row, :length] = 1
    if "label" in batch[0]:
        labels = torch.tensor([sample["label"] for sample in batch])
    return model(input_ids=tokens, attention_mask=real, labels=labels).loss


def factor(step: int, steps: int, share: float) -> float:
    """Of the rate: up over the warm-up, this share of the steps, then linearly down to 0."""
    warmup = round(share * steps)
    return (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)


if __name__ == "__main__":
    main()
