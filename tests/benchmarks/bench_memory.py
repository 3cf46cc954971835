"""Peak memory and time of the plain loss against the loss in chunks of tokens, with and without a teacher.

    python tests/benchmarks/bench_memory.py [--tokens 4096] [--vocabulary 49152] [--chunk 512] [--json FILE]

Each variant runs in a process of its own: a random Llama of two layers takes a step on a few tokens, then one on all of
them. The figure is the peak of the process's resident memory in that step (VmHWM of Linux, reset before) over what it
had; then the step is timed, --rounds times.
The gradients of the parameters are there before; what rises are activations, logits and what the loss makes of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options, **json.loads(options.child))))
        return
    said: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "tokens": options.tokens,
        "vocabulary": options.vocabulary,
        "hidden": options.hidden,
        "chunk": options.chunk,
        "threads": 1,
        "variants": {},
    }
    for dtype in options.dtypes:
        for taught in (False, True):
            found = {}
            for how, size in (("plain", None), ("chunked", options.chunk)):
                child = json.dumps({"dtype": dtype, "taught": taught, "size": size})
                command = [sys.executable, __file__, *sys.argv[1:], "--child", child]
                found[how] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            memory, seconds = (found["plain"][key] / found["chunked"][key] for key in ("peak_bytes", "median_seconds"))
            name = f"{dtype}, {'with a teacher' if taught else 'alone'}"
            said["variants"][name] = found | {"memory_ratio": memory, "time_ratio": 1.0 / seconds}
            print(
                f"{name}: peak {found['plain']['peak_bytes'] / 2**20:,.0f} MiB plain, "
                f"{found['chunked']['peak_bytes'] / 2**20:,.0f} MiB chunked ({memory:.1f} times less), "
                f"{1.0 / seconds:.2f} of the time",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(said, indent=1) + "\n")


def measure(options: argparse.Namespace, dtype: str, taught: bool, size: int | None) -> dict[str, Any]:
    """{rise of the peak, seconds of each step, loss} of one variant, in this process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pat.pruning.schedules import Ramp
    from pat.schema import DistillConfig
    from pat.tasks import base
    from pat.training.distill import Distiller

    torch.set_num_threads(1)
    shape = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=2 * options.hidden,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=options.tokens,
    )  # fmt: skip
    torch.manual_seed(0)
    makes: Any = LlamaForCausalLM
    model, teacher = (makes(shape).to(DTYPES[dtype]) for _ in range(2))
    task = base.build({"name": "causal_lm", "loss_chunk_tokens": size})
    teacher.eval().requires_grad_(False)
    distiller = Distiller(teacher, task, DistillConfig(teacher="t", weight=0.5), Ramp.of("distill", 0, None, 10), [])

    def step(tokens: int) -> float:
        ids = torch.randint(0, options.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))
        batch = {"input_ids": ids, "labels": ids}
        loss = distiller.loss(model, batch, 5) if taught else task.loss(model, batch)
        loss.backward()
        return float(loss.detach())

    step(8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of making the model
    before = resident("VmRSS")
    loss = step(options.tokens)
    rise = resident("VmHWM") - before
    seconds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        step(options.tokens)
        seconds.append(time.perf_counter() - start)
    return {"peak_bytes": rise, "median_seconds": statistics.median(seconds), "seconds": seconds, "loss": loss}


def resident(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
