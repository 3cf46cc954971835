"""How much private memory each rank needs at most while a model is built."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat.models import tokenizers
from pat.models.build import build_model
from pat.schema import Config, ModelConfig
from pat.tasks import base
from pat.zero import engine
from tests.distributed.harness import main

LLAMA = {
    "model_type": "llama", "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6,
    "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 8000, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1}


def private_bytes() -> int:
    """Resident memory that no file backs: mapped checkpoints do not count."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


@contextmanager
def peak() -> Iterator[list[int]]:
    """A list whose only item is the most private memory within the block."""
    most, over = [private_bytes()], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            most[0] = max(most[0], private_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def checks(args: list[str]) -> list[int]:
    """Growth of each rank in bytes in the case that follows the folder; `control` is built without partitioning."""
    folder, case = args
    model_config, stage = {
        "pretrained": (ModelConfig(path=folder), 3),
        "random": (ModelConfig(init="random", config=LLAMA), 3),
        "control": (ModelConfig(init="random", config=LLAMA), 2),
    }[case]
    ranks = dist.get_world_size()
    config = Config().changed(engine__world_size=ranks, engine__zero_stage=stage, train__global_batch_size=ranks)
    task, tokenizer = base.build({"name": "causal_lm"}), tokenizers.byte_tokenizer()

    def build(model_config: ModelConfig) -> None:
        with engine.model_construction(config, engine.deepspeed_config(config)):
            build_model(model_config, task, torch.float32, tokenizer=tokenizer)

    build(ModelConfig(init="random", config=LLAMA | SMALL))  # code that runs for the first time is no growth
    before = private_bytes()
    with peak() as most:
        build(model_config)
    growth: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(growth, most[0] - before)
    return growth


if __name__ == "__main__":
    main(checks)
