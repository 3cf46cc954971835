"""How much private memory each rank needs at most while a model is built."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat import engine, models, tasks
from pat.config import Config, ModelConfig
from tests.distributed.harness import main

LLAMA = {
    "model_type": "llama", "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6,
    "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 8000, "tie_word_embeddings": True,
}  # fmt: skip


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


def checks(args: list[str]) -> dict[str, Any]:
    """{case: [growth of each rank in bytes]}; `control` is built without partitioning."""
    cases = {
        "pretrained": (ModelConfig(path=args[0]), 3),
        "random": (ModelConfig(init="random", config=LLAMA), 3),
        "control": (ModelConfig(init="random", config=LLAMA), 2),
    }
    task, found = tasks.build({"name": "causal_lm"}), {}
    warm = torch.zeros(1)
    dist.all_reduce(warm)
    before = private_bytes()
    for name, (model_config, stage) in cases.items():
        config = Config()
        config.engine.world_size, config.engine.zero_stage = dist.get_world_size(), stage
        config.train.global_batch_size = dist.get_world_size()
        dist.barrier()
        with peak() as most, engine.model_construction(config, engine.deepspeed_config(config)):
            model = models.build_model(model_config, task, torch.float32, tokenizer=models.byte_tokenizer())
        growth: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(growth, most[0] - before)
        found[name] = growth
        del model
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    return found


if __name__ == "__main__":
    main(checks)
