"""Our loop, dense, against Hugging Face's Trainer with DeepSpeed on the same work: seconds of a step, in turn.

    python tests/benchmarks/bench_trainer.py [--rounds 30] [--layers 12] [--tokens 256] [--json results/trainer.json]

A random Llama (hidden 576, 9 heads, 3 KV, vocabulary 49,152), 2 ranks of one thread, ZeRO 2, bf16 with fp32 reduction,
fused AdamW, clipping 1, a line every 10 steps. One process per rank holds both engines: at the end of each of the
Trainer's steps a callback lets our loop take one. A step of the Trainer is all from there to the end of its next:
batch, forward, backward, optimizer, callbacks, logging; ours is `pat.train.step` and the vote on checkpoints after it.
The ratio is ours over theirs, paired round by round; absolute times depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from pat import train
from pat.config import compose, frozen
from pat.training import preflight, setup
from pat.training.metrics import Window
from pat.zero import engine
from tests.distributed import hf_on_cpu
from tests.distributed.harness import main
from tests.distributed.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


WARM_UP = 3
SHAPE = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip


def prepare(run_dir: str, steps: int, layers: int, tokens: int) -> None:
    """A dense run of ours, frozen and with its data, as `pat train` leaves it before it starts the ranks."""
    shape = SHAPE | {"num_hidden_layers": layers, "max_position_embeddings": tokens, "use_cache": False}
    overrides = [
        "data=generated", "task=causal_lm", "engine=zero2", "engine.world_size=2", "model=random",
        "model.tokenizer=byte", "+model.config.model_type=llama", "logger=none", "logger.progress=lines",
        f"run.dir={run_dir}", f"data.max_length={tokens}", f"train.num_steps={steps}", "train.global_batch_size=2",
        "optim.lr=1e-4", "optim.weight_decay=0.01", "optim.lr_schedule=constant",
        *(f"+model.config.{key}={value}" for key, value in shape.items()),
    ]  # fmt: skip

    def freeze(config: Any) -> int:
        frozen.freeze(config, Path(run_dir))
        preflight.prepare(config, Path(run_dir))
        return 0

    compose.compose(overrides, freeze)


class Turns(TrainerCallback):
    """Times the Trainer's steps, and takes one of our own after each."""

    def __init__(self, training: Any) -> None:
        self.training, self.window, self.began = training, Window(training), None
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self.began is not None:
            self.theirs.append(now - self.began)
        dist.barrier()
        now = time.perf_counter()
        train.step(self.training, self.window, self.training.progress.step)
        self.training.agree(self.training.due.checkpoint())
        if self.began is not None:
            self.ours.append(time.perf_counter() - now)
        dist.barrier()
        self.began = time.perf_counter()


def checks(arguments: list[str]) -> dict[str, Any]:
    """Rank side."""
    run_dir = arguments[0]
    rounds, layers, tokens = map(int, arguments[1:])
    hf_on_cpu.allow()
    training = setup.build(Path(run_dir))
    torch.manual_seed(0)
    shape = LlamaConfig(**SHAPE, num_hidden_layers=layers, max_position_embeddings=tokens, use_cache=False)
    deepspeed = engine.deepspeed_config(training.config) | {"gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    args = TrainingArguments(
        run_dir + "/hf", deepspeed=deepspeed, bf16=True, max_steps=rounds + WARM_UP, per_device_train_batch_size=1,
        optim="adamw_torch_fused", learning_rate=1e-4, weight_decay=0.01, lr_scheduler_type="constant",
        max_grad_norm=1.0, logging_steps=10, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    rows = torch.randint(0, 320, (2 * (rounds + WARM_UP), tokens), generator=torch.Generator().manual_seed(0))
    data: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in rows]
    turns = Turns(training)
    Trainer(LlamaForCausalLM(shape), args, train_dataset=data, callbacks=[turns]).train()
    ours, theirs = turns.ours[WARM_UP - 1 :], turns.theirs[WARM_UP - 1 :]
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    quarter = len(ratios) // 4
    return {
        "rounds": len(ratios),
        "layers": layers,
        "tokens_per_rank": tokens,
        "ratio_paired": statistics.median(ratios),
        "ratio_paired_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "ratio_of_medians": statistics.median(ours) / statistics.median(theirs),
        "ratio_of_fastest": min(ours) / min(theirs),
        "ours": {"step_seconds": statistics.median(ours), "tokens_per_s": 2 * tokens / statistics.median(ours)},
        "hf_trainer": {
            "step_seconds": statistics.median(theirs),
            "tokens_per_s": 2 * tokens / statistics.median(theirs),
        },
        "load_average": os.getloadavg()[0],
    }


def table(r: dict[str, Any]) -> str:
    """The figures as text."""
    low, high = r["ratio_paired_quartiles"]
    return "\n".join(
        [f"{r['layers']} layers, {r['tokens_per_rank']} tokens a rank, 2 ranks, ZeRO 2, {r['rounds']} rounds"]
        + [f"{who:11} {r[who]['tokens_per_s']:8.1f} tokens/s" for who in ("ours", "hf_trainer")]
        + [f"step, ours over theirs: {r['ratio_paired']:.3f} paired (half of the rounds in {low:.3f} to {high:.3f}),"]
        + [f"{r['ratio_of_medians']:.3f} of medians, {r['ratio_of_fastest']:.3f} of the fastest"]
    )


if __name__ == "__main__":
    if len(sys.argv) > 4 and sys.argv[1].endswith("out.json"):
        main(checks)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder + "/run", options.rounds + WARM_UP + 1, options.layers, options.tokens)
        numbers = map(str, (options.rounds, options.layers, options.tokens))
        result = run_ranks("tests.benchmarks.bench_trainer", 2, folder + "/run", *numbers, timeout_s=3600)
    result |= {"command": "python " + " ".join(sys.argv)}
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
